#include "native/pool/free_ranges.h"

#include <algorithm>
#include <iterator>

namespace baton::pool {

void FreeRanges::add(Range range) {
  by_begin_.emplace(range.begin, range.end);
  by_size_.emplace(range.bytes(), range.begin);
  bytes_ += range.bytes();
}

FreeRanges::ByBegin::iterator FreeRanges::erase(ByBegin::iterator it) {
  by_size_.erase({it->second - it->first, it->first});
  bytes_ -= it->second - it->first;
  return by_begin_.erase(it);
}

void FreeRanges::insert(Range range) {
  if (range.begin >= range.end) return;
  auto next = by_begin_.lower_bound(range.begin);
  if (next != by_begin_.end() && next->first == range.end) {
    range.end = next->second;
    next = erase(next);
  }
  if (next != by_begin_.begin()) {
    const auto previous = std::prev(next);
    if (previous->second == range.begin) {
      range.begin = previous->first;
      erase(previous);
    }
  }
  add(range);
}

void FreeRanges::remove(Range range) {
  auto it = by_begin_.upper_bound(range.begin);
  if (it != by_begin_.begin() && std::prev(it)->second > range.begin) --it;
  while (it != by_begin_.end() && it->first < range.end) {
    const Range found{it->first, it->second};
    it = erase(it);
    if (found.begin < range.begin) add({found.begin, range.begin});
    if (found.end > range.end) add({range.end, found.end});
  }
}

void FreeRanges::clear() {
  by_begin_.clear();
  by_size_.clear();
  bytes_ = 0;
}

std::optional<uint64_t> FreeRanges::take(uint64_t bytes, uint64_t alignment) {
  // Every range starts at a multiple of the caller's quantum, so for alignments up to it the first candidate
  // fits; only larger ones walk on, past ranges of fewer than bytes + alignment.
  for (auto it = by_size_.lower_bound({bytes, 0}); it != by_size_.end(); ++it) {
    const Range found{it->second, it->second + it->first};
    const uint64_t begin = (found.begin + alignment - 1) & ~(alignment - 1);
    if (begin + bytes > found.end) continue;
    erase(by_begin_.find(found.begin));
    if (found.begin < begin) add({found.begin, begin});
    if (begin + bytes < found.end) add({begin + bytes, found.end});
    return begin;
  }
  return std::nullopt;
}

std::optional<Range> FreeRanges::take_lowest(uint64_t bytes) {
  if (by_begin_.empty() || bytes == 0) return std::nullopt;
  const auto it = by_begin_.begin();
  const Range found{it->first, it->second};
  const Range taken{found.begin, std::min(found.end, found.begin + bytes)};
  erase(it);
  if (taken.end < found.end) add({taken.end, found.end});
  return taken;
}

std::optional<Range> FreeRanges::ending_at(uint64_t address) const {
  auto it = by_begin_.lower_bound(address);
  if (it == by_begin_.begin()) return std::nullopt;
  --it;
  if (it->second != address) return std::nullopt;
  return Range{it->first, it->second};
}

std::optional<Range> FreeRanges::smallest_of(uint64_t bytes) const {
  const auto it = by_size_.lower_bound({bytes, 0});
  if (it == by_size_.end()) return std::nullopt;
  return Range{it->second, it->second + it->first};
}

std::vector<Range> FreeRanges::all() const {
  std::vector<Range> ranges;
  ranges.reserve(by_begin_.size());
  for (const auto& [begin, end] : by_begin_)
    ranges.push_back({begin, end});
  return ranges;
}

}  // namespace baton::pool
