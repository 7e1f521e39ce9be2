#include "native/pool/pool.h"

#include <cstring>
#include <memory>
#include <vector>

#include "native/capi/guard.h"

using baton::Status;
using baton::capi::guarded;
using baton::capi::required;
using baton::pool::Pool;
using baton::pool::Range;
using baton::pool::RangeSet;

struct baton_pool {
  std::unique_ptr<Pool> pool;
};

namespace {

RangeSet ranges_of(const baton_range* ranges, uint64_t count) {
  std::vector<Range> result;
  result.reserve(count);
  for (uint64_t i = 0; i < count; ++i)
    result.push_back({ranges[i].address, ranges[i].address + ranges[i].bytes});
  return RangeSet(std::move(result));
}

std::vector<baton::pool::SharedPiece> pieces_of(const baton_shared_piece* pieces, uint64_t count) {
  std::vector<baton::pool::SharedPiece> result;
  result.reserve(count);
  for (uint64_t i = 0; i < count; ++i)
    result.push_back({{pieces[i].address, pieces[i].address + pieces[i].bytes}, pieces[i].offset});
  return result;
}

// A count of ranges and no ranges is a mistake; no ranges at all is not.
Status check_ranges(const baton_range* ranges, uint64_t count) {
  return count == 0 ? Status{} : required({ranges});
}

void fill(baton_pause_report* out, const baton::pool::PauseReport& report) {
  if (out == nullptr) return;
  *out = {report.released_bytes, report.saved_bytes, report.clean_bytes, report.dead_bytes,
          report.kept_bytes,     report.copy_ns,     report.total_ns,    report.simulated_ns};
}

void fill(baton_resume_report* out, const baton::pool::ResumeReport& report) {
  if (out == nullptr) return;
  *out = {report.mapped_bytes, report.copied_bytes, report.pending_bytes, report.verified_bytes,
          report.copy_ns,      report.total_ns,     report.simulated_ns};
}

}  // namespace

baton_status baton_pool_create(const baton_pool_options* options, baton_pool** out) {
  return guarded([&]() -> Status {
    BATON_TRY(required({options, out}));
    *out = nullptr;
    baton::pool::Options wanted;
    wanted.device = options->device;
    wanted.exportable = options->exportable != 0;
    wanted.segment_bytes = options->segment_bytes;
    wanted.reserve_bytes = options->reserve_bytes;
    wanted.name.assign(options->name, strnlen(options->name, sizeof(options->name)));
    BATON_ASSIGN(auto pool, Pool::create(wanted));
    *out = new baton_pool{std::move(pool)};
    return {};
  });
}

baton_status baton_pool_destroy(baton_pool* pool) {
  return guarded([&]() -> Status {
    delete pool;
    return {};
  });
}

baton_status baton_pool_info(baton_pool* pool, baton_pool_stats* out) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool, out}));
    const Pool& self = *pool->pool;
    const baton::pool::Stats stats = self.stats();
    *out = {};
    out->base = self.base();
    out->reserve_bytes = self.reserve_bytes();
    out->segment_bytes = self.segment_bytes();
    out->segments = stats.segments;
    out->mapped_segments = stats.mapped_segments;
    out->mapped_bytes = stats.mapped_segments * self.segment_bytes();
    out->live_bytes = stats.live_bytes;
    out->live_blocks = stats.live_blocks;
    out->arena_bytes = stats.arena_bytes;
    out->arena_used_bytes = stats.arena_used_bytes;
    out->pending_bytes = stats.pending_bytes;
    return {};
  });
}

baton_status baton_pool_allocate(baton_pool* pool, uint64_t bytes, uint64_t alignment, uint64_t* address) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool, address}));
    BATON_ASSIGN(*address, pool->pool->allocate(bytes, alignment));
    return {};
  });
}

baton_status baton_pool_free(baton_pool* pool, uint64_t address) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    return pool->pool->free(address);
  });
}

int32_t baton_pool_owns(const baton_pool* pool, uint64_t address) {
  return pool != nullptr && pool->pool->owns(address) ? 1 : 0;
}

baton_status baton_pool_blocks(baton_pool* pool, baton_range* out, uint64_t capacity, uint64_t* count) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool, count}));
    if (capacity > 0) BATON_TRY(required({out}));
    const std::vector<Range> blocks = pool->pool->blocks();
    for (uint64_t i = 0; i < blocks.size() && i < capacity; ++i)
      out[i] = {blocks[i].begin, blocks[i].bytes()};
    *count = blocks.size();
    return {};
  });
}

baton_status baton_pool_trim(baton_pool* pool, uint64_t* released) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    BATON_ASSIGN(const uint64_t bytes, pool->pool->trim());
    if (released != nullptr) *released = bytes;
    return {};
  });
}

baton_status baton_pool_declare(baton_pool* pool, int32_t kind, const baton_range* ranges, uint64_t count) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    BATON_TRY(check_ranges(ranges, count));
    if (kind < BATON_SAVED || kind > BATON_DISCARD) {
      return baton::Error{.code = "INVALID_ARGUMENT",
                          .message = "There is no such kind of range.",
                          .expected = "BATON_SAVED, BATON_FROZEN, BATON_ZERO or BATON_DISCARD",
                          .found = std::to_string(kind),
                          .action = "Correct the argument.",
                          .driver_result = std::nullopt};
    }
    pool->pool->declare(static_cast<baton::pool::Worth>(kind), ranges_of(ranges, count));
    return {};
  });
}

baton_status baton_pool_verify_frozen(baton_pool* pool, uint64_t first_n) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    pool->pool->verify_frozen(first_n);
    return {};
  });
}

baton_status baton_pool_set_arena(baton_pool* pool, int fd, uint64_t offset, uint64_t bytes) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    return pool->pool->set_arena(fd, offset, bytes);
  });
}

baton_status baton_pool_open_arena(baton_pool* pool, int fd, uint64_t offset, uint64_t capacity) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    return pool->pool->open_arena(fd, offset, capacity);
  });
}

baton_status baton_pool_grow_arena(baton_pool* pool, uint64_t bytes) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    return pool->pool->grow_arena(bytes);
  });
}

baton_status baton_pool_open_shared(baton_pool* pool, int fd, uint64_t bytes) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    return pool->pool->open_shared(fd, bytes);
  });
}

baton_status baton_pool_write_shared(baton_pool* pool, const baton_shared_piece* pieces, uint64_t count) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    if (count > 0) BATON_TRY(required({pieces}));
    return pool->pool->write_shared(pieces_of(pieces, count));
  });
}

baton_status baton_pool_adopt_shared(baton_pool* pool, const baton_shared_piece* pieces, uint64_t count) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    if (count > 0) BATON_TRY(required({pieces}));
    return pool->pool->adopt_shared(pieces_of(pieces, count));
  });
}

baton_status baton_pool_pause(baton_pool* pool, const baton_range* live, uint64_t live_count, const baton_range* keep,
                              uint64_t keep_count, uint64_t want_bytes, baton_pause_report* report) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    BATON_TRY(check_ranges(keep, keep_count));
    baton::pool::PauseRequest request;
    if (live != nullptr) request.live = ranges_of(live, live_count);
    request.keep = ranges_of(keep, keep_count);
    request.want_bytes = want_bytes;
    BATON_ASSIGN(const auto done, pool->pool->pause(request));
    fill(report, done);
    return {};
  });
}

baton_status baton_pool_discard(baton_pool* pool, baton_pause_report* report) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    BATON_ASSIGN(const auto done, pool->pool->discard());
    fill(report, done);
    return {};
  });
}

baton_status baton_pool_resume(baton_pool* pool, const baton_range* first, uint64_t first_count,
                               const baton_range* leave, uint64_t leave_count, int32_t wait,
                               baton_resume_report* report) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    BATON_TRY(check_ranges(first, first_count));
    BATON_TRY(check_ranges(leave, leave_count));
    BATON_ASSIGN(const auto done,
                 pool->pool->resume(ranges_of(first, first_count), wait != 0, ranges_of(leave, leave_count)));
    fill(report, done);
    return {};
  });
}

baton_status baton_pool_wait(baton_pool* pool, uint64_t deadline_ms, baton_resume_report* report) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    baton::pool::ResumeReport so_far;
    Status status = pool->pool->wait(deadline_ms, so_far);
    fill(report, so_far);
    return status;
  });
}

baton_status baton_pool_export(baton_pool* pool, uint64_t segment, int32_t* fd) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool, fd}));
    BATON_ASSIGN(*fd, pool->pool->export_segment(segment));
    return {};
  });
}
