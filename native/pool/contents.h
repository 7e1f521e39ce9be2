// What a segment holds and what of it is worth saving.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "native/pool/arena.h"
#include "native/pool/ranges.h"

namespace baton::pool {

// What the bytes of a declared range are worth; see BATON_SAVED and the others in baton.h. Where declarations
// overlap, the one that keeps more wins: they are in that order.
enum class Worth : uint8_t { kSaved = 0, kFrozen = 1, kZero = 2, kDiscard = 3 };
inline constexpr size_t kWorths = 4;

// How to bring a paused segment back.
struct Contents {
  std::vector<std::shared_ptr<SavedRange>> saved;
  std::vector<Range> zeros;
  RangeSet live;  // what was in use when it was paused, whatever it is worth
};

// The live ranges of one segment, divided by what they are worth. The rest of the segment is dead.
struct Division {
  RangeSet saved;
  RangeSet frozen;
  RangeSet zero;
  // Discarded ranges are not listed: nothing is to be done for them.
};

class Declarations {
 public:
  void set(Worth worth, RangeSet ranges) { sets_[static_cast<size_t>(worth)] = std::move(ranges); }
  // A declaration is about a block: when it is freed, whatever takes its address starts undeclared.
  void forget(Range range);
  Division divide(const RangeSet& live) const;
  const RangeSet& of(Worth worth) const { return sets_[static_cast<size_t>(worth)]; }

 private:
  std::array<RangeSet, kWorths> sets_;
};

// Copies of frozen ranges that are up to date by declaration, so that they are saved once.
class FrozenCopies {
 public:
  // The copy of exactly this range, or nothing.
  std::shared_ptr<SavedRange> find(Range range) const;
  void keep(std::shared_ptr<SavedRange> copy);
  // Lets go of every copy that overlaps `range`.
  void forget(Range range);
  // Lets go of every copy that is not wholly inside `declared`.
  void keep_only(const RangeSet& declared);
  void clear() { copies_.clear(); }

 private:
  std::map<uint64_t, std::shared_ptr<SavedRange>> copies_;  // by begin; disjoint
};

}  // namespace baton::pool
