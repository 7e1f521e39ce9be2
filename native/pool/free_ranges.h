// Free address ranges, found by size (best fit) or address in O(log n); neighbours are coalesced.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "native/pool/ranges.h"

namespace baton::pool {

class FreeRanges {
 public:
  // `range` must not overlap a free one.
  void insert(Range range);
  // Makes whatever is free inside `range` not free.
  void remove(Range range);
  void clear();

  // Takes `bytes` at a multiple of `alignment` (a power of two) from the smallest range that has room, the
  // lowest address among equals. nullopt: none has.
  std::optional<uint64_t> take(uint64_t bytes, uint64_t alignment);
  // Takes up to `bytes` from the lowest free range; nullopt when nothing is free.
  std::optional<Range> take_lowest(uint64_t bytes);

  // The free range that ends exactly at `address`.
  std::optional<Range> ending_at(uint64_t address) const;
  // The smallest free range of at least `bytes`.
  std::optional<Range> smallest_of(uint64_t bytes) const;
  uint64_t bytes() const { return bytes_; }
  // In address order.
  std::vector<Range> all() const;

 private:
  using ByBegin = std::map<uint64_t, uint64_t>;

  void add(Range range);
  ByBegin::iterator erase(ByBegin::iterator it);

  ByBegin by_begin_;                                 // begin -> end
  std::set<std::pair<uint64_t, uint64_t>> by_size_;  // (bytes, begin)
  uint64_t bytes_ = 0;
};

}  // namespace baton::pool
