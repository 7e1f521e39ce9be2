#include "native/pool/contents.h"

#include <iterator>

namespace baton::pool {

void Declarations::forget(Range range) {
  for (RangeSet& set : sets_) {
    if (set.intersects(range)) set = set.subtracted(RangeSet({range}));
  }
}

Division Declarations::divide(const RangeSet& live) const {
  Division division;
  const RangeSet kept = live.intersected(of(Worth::kSaved));
  RangeSet rest = live.subtracted(kept);
  division.frozen = rest.intersected(of(Worth::kFrozen));
  rest = rest.subtracted(division.frozen);
  division.zero = rest.intersected(of(Worth::kZero));
  rest = rest.subtracted(division.zero);
  rest = rest.subtracted(of(Worth::kDiscard));
  division.saved = rest.united(kept);
  return division;
}

std::shared_ptr<SavedRange> FrozenCopies::find(Range range) const {
  const auto found = copies_.find(range.begin);
  if (found == copies_.end() || found->second->where() != range) return nullptr;
  return found->second;
}

void FrozenCopies::keep(std::shared_ptr<SavedRange> copy) {
  forget(copy->where());
  const uint64_t begin = copy->where().begin;
  copies_.emplace(begin, std::move(copy));
}

void FrozenCopies::forget(Range range) {
  auto it = copies_.lower_bound(range.begin);
  if (it != copies_.begin() && std::prev(it)->second->where().end > range.begin) --it;
  while (it != copies_.end() && it->first < range.end)
    it = copies_.erase(it);
}

void FrozenCopies::keep_only(const RangeSet& declared) {
  std::erase_if(copies_, [&](const auto& entry) {
    const Range where = entry.second->where();
    return declared.clipped(where).bytes() != where.bytes();
  });
}

}  // namespace baton::pool
