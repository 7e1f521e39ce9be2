#include "native/pool/pool.h"

#include <sys/stat.h>

#include <bit>

#include "native/copy/clock.h"

namespace baton::pool {
namespace {

Error invalid(const std::string& message, const std::string& expected, const std::string& found) {
  return Error{.code = "INVALID_ARGUMENT",
               .message = message,
               .expected = expected,
               .found = found,
               .action = "Correct the argument.",
               .driver_result = std::nullopt};
}

}  // namespace

Result<std::unique_ptr<Pool>> Pool::create(const Options& options) {
  BATON_ASSIGN(const Gpu* gpu, Gpu::get(options.device));
  const CurrentContext current(*gpu);
  BATON_TRY(current.status());
  BATON_ASSIGN(const uint64_t granularity, gpu->granularity_bytes());
  const uint64_t segment_bytes = options.segment_bytes == 0 ? granularity : options.segment_bytes;
  if (segment_bytes % granularity != 0) {
    return invalid("The segment size is not usable.", "a multiple of " + std::to_string(granularity) + " bytes",
                   std::to_string(segment_bytes));
  }
  BATON_ASSIGN(const DeviceMemory memory, gpu->memory());
  const uint64_t wanted = options.reserve_bytes == 0 ? 2 * memory.total_bytes : options.reserve_bytes;
  const uint64_t reserve_bytes = (wanted + segment_bytes - 1) / segment_bytes * segment_bytes;
  if (reserve_bytes < wanted) {
    return invalid("The address space to reserve is too large.", "fewer bytes", std::to_string(wanted));
  }
  BATON_ASSIGN(Stream stream, Stream::create(*gpu));
  cuda::DevicePointer base = 0;
  BATON_TRY(gpu->driver().cuMemAddressReserve(&base, reserve_bytes, 0, 0, 0));
  return std::unique_ptr<Pool>(new Pool(*gpu, options, segment_bytes, base, reserve_bytes, std::move(stream)));
}

Pool::Pool(const Gpu& gpu, const Options& options, uint64_t segment_bytes, uint64_t base, uint64_t reserve_bytes,
           Stream stream)
    : gpu_(gpu),
      name_(options.name),
      exportable_(options.exportable),
      memory_(gpu, options.name, segment_bytes, options.exportable),
      base_(base),
      reserve_bytes_(reserve_bytes),
      stream_(std::move(stream)),
      blocks_(base, segment_bytes, reserve_bytes / segment_bytes) {}

Pool::~Pool() {
  background_stop_ = true;
  join_background_resume();
  const CurrentContext current(gpu_);
  // Kernels of the process may still use the memory; freeing it under them would be an illegal address.
  static_cast<void>(gpu_.driver().cuCtxSynchronize());
  for (const auto& [index, segment] : segments_) {
    if (segment.state != Segment::State::kMapped) continue;
    static_cast<void>(memory_.unmap(address_of(index)));
    static_cast<void>(memory_.release(segment.handle));
  }
  static_cast<void>(gpu_.driver().cuMemAddressFree(base_, reserve_bytes_));
}

Stats Pool::stats() const {
  const std::lock_guard lock(state_mutex_);
  Stats stats;
  stats.segments = segments_.size();
  for (const auto& [index, segment] : segments_) {
    if (segment.state == Segment::State::kMapped) ++stats.mapped_segments;
    if (segment.state == Segment::State::kReturning) stats.pending_bytes += segment_bytes();
  }
  stats.live_bytes = blocks_.live_bytes();
  stats.live_blocks = blocks_.live_blocks();
  if (arena_) {
    stats.arena_bytes = arena_->bytes();
    stats.arena_used_bytes = arena_->used_bytes();
  }
  return stats;
}

uint64_t Pool::mapped_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [index, segment] : segments_) {
    if (segment.state == Segment::State::kMapped) bytes += segment_bytes();
  }
  return bytes;
}

Result<uint64_t> Pool::allocate(uint64_t bytes, uint64_t alignment) {
  if (bytes == 0 || !std::has_single_bit(alignment) || alignment > segment_bytes()) {
    return invalid("The allocation is not possible.",
                   "bytes > 0 and an alignment that is a power of two up to " + std::to_string(segment_bytes()),
                   std::to_string(bytes) + " bytes with alignment " + std::to_string(alignment));
  }
  if (bytes > reserve_bytes_) return out_of_address_space(bytes);

  const std::lock_guard lock(state_mutex_);
  if (const auto address = blocks_.allocate(bytes, alignment)) return *address;
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  auto growth = blocks_.plan_growth(bytes, alignment);
  if (!growth) return out_of_address_space(bytes);
  Status grown = grow(*growth);
  if (!grown && grown.error().code == "OUT_OF_MEMORY") {
    // Segments without a block are held only for speed; they go before anybody is told that memory is out.
    BATON_ASSIGN(const uint64_t trimmed, trim_locked());
    growth = blocks_.plan_growth(bytes, alignment);
    if (trimmed > 0 && growth) grown = grow(*growth);
  }
  BATON_TRY(std::move(grown));
  const auto address = blocks_.allocate(bytes, alignment);
  if (!address) return out_of_address_space(bytes);
  return *address;
}

Error Pool::out_of_address_space(uint64_t bytes) const {
  return Error{.code = "OUT_OF_ADDRESS_SPACE",
               .message = "Pool '" + name_ + "' has no address range left for a block.",
               .expected = std::to_string(bytes) + " bytes in one piece",
               .found = std::to_string(reserve_bytes_) + " bytes reserved in all",
               .action = "Create the pool with a larger reserve_bytes.",
               .driver_result = std::nullopt};
}

// All of the segments or none.
Status Pool::grow(BlockAllocator::Growth growth) {
  std::vector<uint64_t> added;
  const auto add = [&](uint64_t index) -> Status {
    BATON_ASSIGN(const cuda::AllocationHandle handle, memory_.create());
    if (Status mapped = memory_.map(address_of(index), handle); !mapped) {
      static_cast<void>(memory_.release(handle));
      return mapped;
    }
    segments_[index] = Segment{Segment::State::kMapped, handle, {}};
    added.push_back(index);
    return {};
  };
  for (uint64_t i = 0; i < growth.segments; ++i) {
    Status status = add(growth.first_segment + i);
    if (status) continue;
    for (const uint64_t index : added) {
      static_cast<void>(memory_.unmap(address_of(index)));
      static_cast<void>(memory_.release(segments_[index].handle));
      segments_.erase(index);
    }
    return status;
  }
  for (const uint64_t index : added)
    blocks_.set_place(index, BlockAllocator::Place::kUsable);
  return {};
}

Status Pool::free(uint64_t address) {
  const std::lock_guard lock(state_mutex_);
  const auto range = blocks_.free(address);
  if (!range) {
    return Error{.code = "NOT_A_BLOCK",
                 .message = "The address is not a block of pool '" + name_ + "'.",
                 .expected = "an address that allocate returned and that was not freed since",
                 .found = std::to_string(address),
                 .action = "Look for a double free, or for memory of another allocator.",
                 .driver_result = std::nullopt};
  }
  declarations_.forget(*range);
  frozen_copies_.forget(*range);
  shared_copies_.forget(*range);
  return {};
}

std::vector<Range> Pool::blocks() const {
  const std::lock_guard lock(state_mutex_);
  return blocks_.blocks();
}

Result<uint64_t> Pool::trim() {
  const std::lock_guard lock(state_mutex_);
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  return trim_locked();
}

Result<uint64_t> Pool::trim_locked() {
  std::vector<Release> releases;
  for (const auto& [index, segment] : segments_) {
    if (segment.state == Segment::State::kReturning || blocks_.holds_block(index)) continue;
    if (segment.state == Segment::State::kMapped) releases.emplace_back(index);
  }
  if (releases.empty()) return uint64_t{0};
  BATON_TRY(gpu_.driver().cuCtxSynchronize());
  BATON_TRY(discard_all(releases));
  commit_release(releases);
  return releases.size() * segment_bytes();
}

void Pool::become_absent(uint64_t index) {
  blocks_.set_place(index, BlockAllocator::Place::kAbsent);
  segments_.erase(index);
}

void Pool::declare(Worth worth, RangeSet ranges) {
  const std::lock_guard lock(state_mutex_);
  if (worth == Worth::kFrozen) {
    frozen_copies_.keep_only(ranges);
    shared_copies_.keep_only(ranges);
  }
  declarations_.set(worth, std::move(ranges));
}

void Pool::verify_frozen(uint64_t first_resumes) {
  const std::lock_guard lock(state_mutex_);
  verify_first_ = first_resumes;
}

Status Pool::set_arena(int fd, uint64_t offset, uint64_t bytes) {
  struct stat status{};
  if (fstat(fd, &status) != 0 || offset + bytes < offset || static_cast<uint64_t>(status.st_size) < offset + bytes) {
    return Error{.code = "ARENA_UNUSABLE",
                 .message = "The arena's memfd is missing or too small.",
                 .expected = std::to_string(offset) + " + " + std::to_string(bytes) + " bytes",
                 .found = std::to_string(status.st_size) + " bytes",
                 .action = "Give a memfd that is large enough.",
                 .driver_result = std::nullopt};
  }
  BATON_ASSIGN(auto arena, Arena::open(gpu_, fd, offset, bytes));
  BATON_TRY(arena->grow(bytes));
  return use_arena(std::move(arena));
}

Status Pool::open_arena(int fd, uint64_t offset, uint64_t capacity_bytes) {
  BATON_ASSIGN(auto arena, Arena::open(gpu_, fd, offset, capacity_bytes));
  return use_arena(std::move(arena));
}

Status Pool::grow_arena(uint64_t bytes) {
  std::shared_ptr<Arena> arena;
  {
    const std::lock_guard lock(state_mutex_);
    arena = arena_;
  }
  if (arena) return arena->grow(bytes);
  return Error{.code = "NO_ARENA",
               .message = "Pool '" + name_ + "' has no arena that could grow.",
               .expected = "an arena",
               .found = "none",
               .action = "Open an arena first.",
               .driver_result = std::nullopt};
}

Status Pool::use_arena(std::shared_ptr<Arena> arena) {
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  {
    const std::lock_guard lock(state_mutex_);
    for (const auto& [index, segment] : segments_) {
      if (segment.state == Segment::State::kMapped || segment.contents.saved.empty()) continue;
      return Error{.code = "ARENA_IN_USE",
                   .message = "Pool '" + name_ + "' is paused in its present arena.",
                   .expected = "no segment saved in the arena",
                   .found = "segment " + std::to_string(index) + " is",
                   .action = "Resume the pool before it gets another arena.",
                   .driver_result = std::nullopt};
    }
  }
  const std::lock_guard lock(state_mutex_);
  // Copies of frozen ranges stay behind in the old arena; they are made again at the next pause.
  frozen_copies_.clear();
  arena_ = std::move(arena);
  return {};
}

}  // namespace baton::pool
