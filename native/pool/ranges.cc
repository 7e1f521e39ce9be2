#include "native/pool/ranges.h"

#include <algorithm>

namespace baton::pool {
namespace {

// The first range that ends after `address`.
std::vector<Range>::const_iterator first_ending_after(const std::vector<Range>& ranges, uint64_t address) {
  return std::upper_bound(ranges.begin(), ranges.end(), address,
                          [](uint64_t value, const Range& range) { return value < range.end; });
}

}  // namespace

RangeSet::RangeSet(std::vector<Range> ranges) {
  std::erase_if(ranges, [](const Range& range) { return range.begin >= range.end; });
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (const Range& range : ranges) {
    if (!ranges_.empty() && range.begin <= ranges_.back().end) {
      ranges_.back().end = std::max(ranges_.back().end, range.end);
    } else {
      ranges_.push_back(range);
    }
  }
}

uint64_t RangeSet::bytes() const {
  uint64_t total = 0;
  for (const Range& range : ranges_)
    total += range.bytes();
  return total;
}

bool RangeSet::intersects(Range range) const {
  if (range.begin >= range.end) return false;
  const auto found = first_ending_after(ranges_, range.begin);
  return found != ranges_.end() && found->begin < range.end;
}

RangeSet RangeSet::clipped(Range window) const {
  RangeSet result;
  for (auto it = first_ending_after(ranges_, window.begin); it != ranges_.end() && it->begin < window.end; ++it) {
    result.ranges_.push_back({std::max(it->begin, window.begin), std::min(it->end, window.end)});
  }
  return result;
}

RangeSet RangeSet::intersected(const RangeSet& other) const {
  RangeSet result;
  auto a = ranges_.begin();
  auto b = other.ranges_.begin();
  while (a != ranges_.end() && b != other.ranges_.end()) {
    const Range common{std::max(a->begin, b->begin), std::min(a->end, b->end)};
    if (common.begin < common.end) result.ranges_.push_back(common);
    if (a->end < b->end) {
      ++a;
    } else {
      ++b;
    }
  }
  return result;
}

RangeSet RangeSet::subtracted(const RangeSet& other) const {
  RangeSet result;
  auto hole = other.ranges_.begin();
  for (const Range& range : ranges_) {
    uint64_t begin = range.begin;
    while (hole != other.ranges_.end() && hole->end <= begin)
      ++hole;
    for (auto it = hole; it != other.ranges_.end() && it->begin < range.end; ++it) {
      if (it->begin > begin) result.ranges_.push_back({begin, it->begin});
      begin = std::max(begin, it->end);
    }
    if (begin < range.end) result.ranges_.push_back({begin, range.end});
  }
  return result;
}

RangeSet RangeSet::united(const RangeSet& other) const {
  std::vector<Range> all = ranges_;
  all.insert(all.end(), other.ranges_.begin(), other.ranges_.end());
  return RangeSet(std::move(all));
}

}  // namespace baton::pool
