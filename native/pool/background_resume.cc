// The part of a resume that goes on while the process works: segment by segment, in address order.
//
// The bytes arrive through an alias, a second mapping of the same memory. Only when they are all there is the
// segment's own address mapped, so that a reader who comes too early faults instead of reading garbage.
#include <algorithm>
#include <array>
#include <chrono>
#include <memory>

#include "native/copy/clock.h"
#include "native/pool/pool.h"

namespace baton::pool {
namespace {

constexpr uint64_t kLongestWaitMs = uint64_t{365} * 24 * 3600 * 1000;

}  // namespace

// Two aliases take turns: while the bytes of one segment arrive, the one before is put in its place.
class Pool::BackgroundResume {
 public:
  BackgroundResume(Pool& pool, bool verify) : pool_(pool), memory_(pool.memory_), verify_(verify) {}

  ~BackgroundResume() {
    if (base_ == 0) return;
    static_cast<void>(pool_.gpu_.driver().cuMemAddressFree(base_, kAliases * memory_.segment_bytes()));
  }

  Status prepare() {
    for (auto& stream : streams_) {
      BATON_ASSIGN(Stream created, Stream::create(pool_.gpu_));
      stream = std::make_unique<Stream>(std::move(created));
    }
    cuda::DevicePointer base = 0;
    BATON_TRY(pool_.gpu_.driver().cuMemAddressReserve(&base, kAliases * memory_.segment_bytes(), 0, 0, 0));
    base_ = base;
    return {};
  }

  // Brings `indices` back; `done` counts those that are. What was started when something fails or the pool goes
  // is still put in its place.
  Status run(const std::vector<uint64_t>& indices, size_t& done) {
    Status status;
    size_t started = 0;
    const auto start_some = [&] {
      while (status && started < indices.size() && started < done + kAliases && !pool_.background_stop_) {
        status = start(indices[started], started % kAliases);
        if (status) ++started;
      }
    };
    for (start_some(); done < started; start_some()) {
      if (Status finished = finish(indices[done], done % kAliases); !finished) {
        drop_aliases();
        return finished;
      }
      ++done;
    }
    return status;
  }

  uint64_t simulated_ns() const {
    uint64_t total = 0;
    for (const auto& stream : streams_) {
      if (!stream || stream->simulated_ns() == UINT64_MAX) return UINT64_MAX;
      total += stream->simulated_ns();
    }
    return total;
  }

 private:
  static constexpr size_t kAliases = 2;

  uint64_t alias(size_t slot) const { return base_ + slot * memory_.segment_bytes(); }

  // While a segment is returning its entry is this thread's alone; only the table of them is shared.
  Segment& segment(uint64_t index) {
    const std::lock_guard lock(pool_.state_mutex_);
    return pool_.segments_[index];
  }

  void drop_aliases() {
    for (size_t slot = 0; slot < kAliases; ++slot) {
      static_cast<void>(streams_[slot]->synchronize());
      if (aliased_[slot]) static_cast<void>(memory_.unmap(alias(slot)));
      aliased_[slot] = false;
    }
  }

  Status start(uint64_t index, size_t slot) {
    const Segment& returning = segment(index);
    BATON_TRY(memory_.map(alias(slot), returning.handle));
    aliased_[slot] = true;
    copied_bytes_[slot] = 0;
    // The process computes meanwhile.
    Status status = memory_.start_restore(returning.contents, pool_.address_of(index), alias(slot),
                                          Restorer::kCopyEngine, *streams_[slot], copied_bytes_[slot]);
    if (status) return {};
    static_cast<void>(streams_[slot]->synchronize());
    static_cast<void>(memory_.unmap(alias(slot)));
    aliased_[slot] = false;
    return status;
  }

  Status finish(uint64_t index, size_t slot) {
    const Segment& returning = segment(index);
    BATON_TRY(streams_[slot]->synchronize());
    uint64_t verified_bytes = 0;
    if (verify_) {
      BATON_TRY(pool_.verify_contents(returning.contents, pool_.address_of(index), alias(slot), verified_bytes));
    }
    BATON_TRY(memory_.unmap(alias(slot)));
    aliased_[slot] = false;
    BATON_TRY(memory_.map(pool_.address_of(index), returning.handle));
    const std::lock_guard lock(pool_.state_mutex_);
    pool_.finish_return(index);
    ResumeReport& report = pool_.last_resume_;
    report.mapped_bytes += memory_.segment_bytes();
    report.pending_bytes -= memory_.segment_bytes();
    report.copied_bytes += copied_bytes_[slot];
    report.verified_bytes += verified_bytes;
    return {};
  }

  Pool& pool_;
  const SegmentMemory& memory_;
  const bool verify_;
  uint64_t base_ = 0;
  std::array<std::unique_ptr<Stream>, kAliases> streams_;
  std::array<bool, kAliases> aliased_ = {};
  std::array<uint64_t, kAliases> copied_bytes_ = {};
};

void Pool::run_background_resume(std::vector<uint64_t> indices, bool verify) {
  const uint64_t begin_ns = now_ns();
  const CurrentContext current(gpu_);
  size_t done = 0;
  uint64_t simulated_ns = UINT64_MAX;
  Status status = current.status();
  if (status) {
    BackgroundResume resume(*this, verify);
    status = resume.prepare();
    const uint64_t before_ns = resume.simulated_ns();
    if (status) status = resume.run(indices, done);
    simulated_ns = simulated_difference_ns(before_ns, resume.simulated_ns());
  }
  const std::lock_guard lock(state_mutex_);
  indices.erase(indices.begin(), indices.begin() + static_cast<std::ptrdiff_t>(done));
  drop_handles(indices);
  if (!status) background_error_ = status.error();
  const uint64_t spent_ns = now_ns() - begin_ns;
  last_resume_.copy_ns += spent_ns;
  last_resume_.total_ns += spent_ns;
  if (simulated_ns != UINT64_MAX) last_resume_.simulated_ns += simulated_ns;
  background_running_ = false;
  background_ended_.notify_all();
}

// With operation_mutex_ held (or the pool going): only resume() starts the thread.
void Pool::join_background_resume() {
  if (background_.joinable()) background_.join();
}

Status Pool::wait(uint64_t deadline_ms, ResumeReport& report) {
  std::unique_lock lock(state_mutex_);
  // Far enough away to be for ever, and near enough not to overflow the clock.
  const auto deadline = std::chrono::milliseconds(std::min(deadline_ms, kLongestWaitMs));
  const bool ended = background_ended_.wait_for(lock, deadline, [&] { return !background_running_; });
  report = last_resume_;
  if (!ended) {
    return Error{.code = "DEADLINE",
                 .message = "The background resume of pool '" + name_ + "' is not done.",
                 .expected = "done within " + std::to_string(deadline_ms) + " ms",
                 .found = std::to_string(report.pending_bytes) + " bytes still to come",
                 .action = "Wait longer, or look at the other work of this GPU.",
                 .driver_result = std::nullopt};
  }
  if (background_error_) return *background_error_;
  return {};
}

}  // namespace baton::pool
