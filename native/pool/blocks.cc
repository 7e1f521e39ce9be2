#include "native/pool/blocks.h"

#include <algorithm>
#include <iterator>

namespace baton::pool {
namespace {

uint64_t rounded_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

uint64_t space_of(uint64_t bytes) {
  return rounded_up(bytes, BlockAllocator::kQuantumBytes);
}

}  // namespace

BlockAllocator::BlockAllocator(uint64_t base, uint64_t segment_bytes, uint64_t segments)
    : base_(base), segment_bytes_(segment_bytes), places_(segments, Place::kAbsent) {
  absent_.insert({base, base + segments * segment_bytes});
}

std::optional<uint64_t> BlockAllocator::allocate(uint64_t bytes, uint64_t alignment) {
  const auto address = free_.take(space_of(bytes), std::max(alignment, kQuantumBytes));
  if (address) {
    blocks_.emplace(*address, bytes);
    live_bytes_ += bytes;
  }
  return address;
}

std::optional<BlockAllocator::Growth> BlockAllocator::plan_growth(uint64_t bytes, uint64_t alignment) const {
  const uint64_t space = space_of(bytes);
  alignment = std::max(alignment, kQuantumBytes);
  std::optional<Growth> best;
  for (const Range& gap : absent_.all()) {
    // A free range that ends where the gap begins is the start of the new block.
    const uint64_t from = free_.ending_at(gap.begin).value_or(Range{gap.begin, gap.begin}).begin;
    const uint64_t begin = rounded_up(from, alignment);
    const uint64_t end = begin + space;
    if (end < begin || end > gap.end) continue;
    // Alignment can skip whole segments of the gap; they are grown too, so that the range is in one piece.
    const uint64_t segments = rounded_up(end - gap.begin, segment_bytes_) / segment_bytes_;
    if (!best || segments < best->segments) best = Growth{(gap.begin - base_) / segment_bytes_, segments};
  }
  return best;
}

std::optional<Range> BlockAllocator::free(uint64_t address) {
  const auto found = blocks_.find(address);
  if (found == blocks_.end()) return std::nullopt;
  const Range live{address, address + found->second};
  const Range space{address, address + space_of(found->second)};
  blocks_.erase(found);
  live_bytes_ -= live.bytes();
  // Only what lies in usable segments can be handed out now; the rest follows when its segment is back.
  const uint64_t last = (space.end - 1 - base_) / segment_bytes_;
  for (uint64_t segment = (space.begin - base_) / segment_bytes_; segment <= last; ++segment) {
    if (places_[segment] != Place::kUsable) continue;
    const Range whole = segment_range(segment);
    free_.insert({std::max(space.begin, whole.begin), std::min(space.end, whole.end)});
  }
  return live;
}

void BlockAllocator::set_place(uint64_t segment, Place place) {
  const Place before = places_[segment];
  if (before == place) return;
  const Range range = segment_range(segment);
  if (before == Place::kUsable) free_.remove(range);
  if (before == Place::kAbsent) absent_.remove(range);
  places_[segment] = place;
  if (place == Place::kAbsent) absent_.insert(range);
  if (place == Place::kUsable) {
    for (const Range& gap : gaps_between_blocks(segment))
      free_.insert(gap);
  }
}

Range BlockAllocator::segment_range(uint64_t segment) const {
  const uint64_t begin = base_ + segment * segment_bytes_;
  return {begin, begin + segment_bytes_};
}

bool BlockAllocator::holds_block(uint64_t segment) const {
  const Range range = segment_range(segment);
  const auto after = blocks_.lower_bound(range.end);
  if (after == blocks_.begin()) return false;
  const auto last = std::prev(after);
  return last->first + space_of(last->second) > range.begin;
}

std::vector<Range> BlockAllocator::gaps_between_blocks(uint64_t segment) const {
  const Range range = segment_range(segment);
  std::vector<Range> gaps;
  uint64_t begin = range.begin;
  auto it = blocks_.upper_bound(range.begin);
  if (it != blocks_.begin()) --it;
  for (; it != blocks_.end() && it->first < range.end; ++it) {
    const uint64_t end = it->first + space_of(it->second);
    if (end <= begin) continue;
    if (it->first > begin) gaps.push_back({begin, it->first});
    begin = end;
  }
  if (begin < range.end) gaps.push_back({begin, range.end});
  return gaps;
}

std::vector<Range> BlockAllocator::blocks() const {
  std::vector<Range> ranges;
  ranges.reserve(blocks_.size());
  for (const auto& [address, bytes] : blocks_)
    ranges.push_back({address, address + bytes});
  return ranges;
}

}  // namespace baton::pool
