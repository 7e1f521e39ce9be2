// The host memory that a paused pool lives in: part of a memfd given from outside, mapped once, and brought in and
// registered with the driver piece by piece as it grows. It outlives this process, so a finished pause survives it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "native/copy/gpu.h"
#include "native/driver/error.h"
#include "native/pool/free_ranges.h"
#include "native/pool/ranges.h"

namespace baton::pool {

// Where a piece of a saved range lies: bytes from the arena's begin.
struct Extent {
  uint64_t offset;
  uint64_t bytes;
};

class Arena {
 public:
  // Pieces start at multiples of this, so that host and device copies run on whole cache lines.
  static constexpr uint64_t kAlignmentBytes = 64;

  // Duplicates the descriptor and maps `bytes` of it at `offset` (a multiple of the page size), of which nothing can be
  // used yet. Errors: ARENA_UNUSABLE.
  static Result<std::shared_ptr<Arena>> open(const Gpu& gpu, int fd, uint64_t offset, uint64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Brings in and registers what is missing to `bytes`, or to all that is mapped if that is less; the memfd grows with
  // it. What is there already can be used meanwhile. Errors: ARENA_UNUSABLE and the driver's; what was added before
  // stays.
  Status grow(uint64_t bytes);
  // Grows until `bytes` are free, if that can be.
  Status make_room(uint64_t bytes);

  // What has been brought in.
  uint64_t bytes() const;
  uint64_t used_bytes() const;
  // What take() can give, in bytes.
  uint64_t free_bytes() const;
  std::byte* at(uint64_t offset) const { return memory_ + offset; }
  // Where kernels of the GPU read the same bytes; nullopt where they cannot. They must have been brought in.
  std::optional<uint64_t> device_address(uint64_t offset) const;

  // What `bytes` take of the arena.
  static uint64_t space_of(uint64_t bytes) { return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes; }
  // Space for `bytes`, in as many extents as it takes; the lowest free ones. nullopt: not enough.
  std::optional<std::vector<Extent>> take(uint64_t bytes);
  void give_back(const std::vector<Extent>& extents);
  // The bytes at `offset`, in pieces that a copy does not run out of. They must have been brought in.
  std::vector<Extent> extents_of(uint64_t offset, uint64_t bytes) const;

 private:
  Arena(const Gpu& gpu, int fd, uint64_t offset, std::byte* memory, uint64_t capacity_bytes)
      : gpu_(gpu), fd_(fd), offset_(offset), memory_(memory), capacity_bytes_(capacity_bytes) {}

  // What was brought in and registered at a time: a copy must not run over its end.
  struct Piece {
    uint64_t begin;
    uint64_t end;
    std::optional<uint64_t> device;
  };

  Status add_piece(uint64_t begin, uint64_t end);
  // Needs mutex_.
  const Piece& piece_at(uint64_t offset) const;

  const Gpu& gpu_;
  const int fd_;
  const uint64_t offset_;
  std::byte* const memory_;
  const uint64_t capacity_bytes_;
  // One at a time grows it. Taken before mutex_.
  std::mutex grow_mutex_;
  mutable std::mutex mutex_;
  std::vector<Piece> pieces_;  // ascending, without gaps
  FreeRanges free_;
};

// What was copied of one range. Gives its space back when the last holder lets go, unless it is another's.
class SavedRange {
 public:
  enum class Space : uint8_t { kOwn, kBorrowed };

  SavedRange(std::shared_ptr<Arena> arena, Range where, std::vector<Extent> extents, Space space = Space::kOwn)
      : arena_(std::move(arena)), where_(where), extents_(std::move(extents)), space_(space) {}
  ~SavedRange() {
    if (space_ == Space::kOwn) arena_->give_back(extents_);
  }
  SavedRange(const SavedRange&) = delete;
  SavedRange& operator=(const SavedRange&) = delete;

  Range where() const { return where_; }
  const std::vector<Extent>& extents() const { return extents_; }
  const Arena& arena() const { return *arena_; }
  // Whether the bytes are there without being copied by this pool.
  bool borrowed() const { return space_ == Space::kBorrowed; }

  // Of the device memory when it was saved; set for frozen ranges only.
  std::optional<uint64_t> checksum;

 private:
  std::shared_ptr<Arena> arena_;
  Range where_;
  std::vector<Extent> extents_;
  Space space_;
};

}  // namespace baton::pool
