// Hands out blocks of an address range of which only some segments can be used at the moment.
//
// Best fit with coalescing, O(log n). A block may span neighbouring segments. Knows addresses only: mapping is
// the pool's business. Not thread-safe; the pool locks.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "native/pool/free_ranges.h"
#include "native/pool/ranges.h"

namespace baton::pool {

class BlockAllocator {
 public:
  // Blocks start at multiples of this, and the space they take is a multiple of it. What counts as live is the
  // bytes that were asked for.
  static constexpr uint64_t kQuantumBytes = 512;

  enum class Place : uint8_t {
    kAbsent,  // no memory: may be grown into
    kUsable,  // mapped: blocks may be placed here
    kAway,    // memory paused or on its way back: blocks stay, none is placed here
  };

  struct Growth {
    uint64_t first_segment;
    uint64_t segments;
  };

  BlockAllocator(uint64_t base, uint64_t segment_bytes, uint64_t segments);

  // A block in usable segments; nullopt when there is no room. `alignment` is a power of two.
  std::optional<uint64_t> allocate(uint64_t bytes, uint64_t alignment);
  // The fewest absent segments that, made usable, let such an allocation succeed; nullopt: no address space.
  std::optional<Growth> plan_growth(uint64_t bytes, uint64_t alignment) const;
  // The live range of the block at `address` that is no more; nullopt: there is none.
  std::optional<Range> free(uint64_t address);

  void set_place(uint64_t segment, Place place);
  Place place(uint64_t segment) const { return places_[segment]; }
  Range segment_range(uint64_t segment) const;
  // Whether a block lives, wholly or in part, in the segment.
  bool holds_block(uint64_t segment) const;

  // In address order; a range is the bytes that were asked for.
  std::vector<Range> blocks() const;
  uint64_t live_bytes() const { return live_bytes_; }
  uint64_t live_blocks() const { return blocks_.size(); }

 private:
  // What of the segment no block takes.
  std::vector<Range> gaps_between_blocks(uint64_t segment) const;

  uint64_t base_;
  uint64_t segment_bytes_;
  std::vector<Place> places_;
  FreeRanges free_;                      // in usable segments
  FreeRanges absent_;                    // address ranges of absent segments
  std::map<uint64_t, uint64_t> blocks_;  // address -> bytes asked for
  uint64_t live_bytes_ = 0;
};

}  // namespace baton::pool
