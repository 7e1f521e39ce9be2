#include "native/pool/shared_copies.h"

#include <algorithm>
#include <iterator>

namespace baton::pool {

void SharedCopies::add(const std::shared_ptr<Arena>& arena, const std::vector<SharedPiece>& pieces) {
  if (arena != arena_) pieces_.clear();
  arena_ = arena;
  for (const SharedPiece& piece : pieces) {
    forget(piece.where);
    pieces_.emplace(piece.where.begin, piece);
  }
}

std::shared_ptr<SavedRange> SharedCopies::find(Range range) const {
  auto it = pieces_.upper_bound(range.begin);
  if (it == pieces_.begin()) return nullptr;
  --it;
  std::vector<Extent> extents;
  for (uint64_t at = range.begin; at < range.end; ++it) {
    if (it == pieces_.end() || it->first > at || it->second.where.end <= at) return nullptr;
    const SharedPiece& piece = it->second;
    const uint64_t end = std::min(piece.where.end, range.end);
    const auto part = arena_->extents_of(piece.offset + (at - piece.where.begin), end - at);
    extents.insert(extents.end(), part.begin(), part.end());
    at = end;
  }
  return std::make_shared<SavedRange>(arena_, range, std::move(extents), SavedRange::Space::kBorrowed);
}

void SharedCopies::forget(Range range) {
  auto it = pieces_.lower_bound(range.begin);
  if (it != pieces_.begin() && std::prev(it)->second.where.end > range.begin) --it;
  while (it != pieces_.end() && it->first < range.end)
    it = pieces_.erase(it);
}

void SharedCopies::keep_only(const RangeSet& declared) {
  std::erase_if(pieces_, [&](const auto& entry) {
    const Range where = entry.second.where;
    return declared.clipped(where).bytes() != where.bytes();
  });
}

void SharedCopies::clear() {
  pieces_.clear();
  arena_.reset();
}

}  // namespace baton::pool
