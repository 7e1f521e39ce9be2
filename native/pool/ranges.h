// Half-open address ranges, and sorted disjoint sets of them.
#pragma once
#include <cstdint>
#include <vector>

namespace baton::pool {

struct Range {
  uint64_t begin;
  uint64_t end;

  uint64_t bytes() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Sorted by address, disjoint and not touching, none empty.
class RangeSet {
 public:
  RangeSet() = default;
  // Any order; overlaps are merged.
  explicit RangeSet(std::vector<Range> ranges);

  const std::vector<Range>& ranges() const { return ranges_; }
  bool empty() const { return ranges_.empty(); }
  uint64_t bytes() const;
  bool intersects(Range range) const;

  // The parts of this set inside `window`.
  RangeSet clipped(Range window) const;
  RangeSet intersected(const RangeSet& other) const;
  RangeSet subtracted(const RangeSet& other) const;
  RangeSet united(const RangeSet& other) const;

 private:
  std::vector<Range> ranges_;
};

}  // namespace baton::pool
