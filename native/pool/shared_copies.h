// Copies of frozen ranges in a file that several processes map: what is the same in all of them is saved once.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "native/pool/arena.h"
#include "native/pool/ranges.h"

namespace baton::pool {

// A range of the device, and where the file has the same bytes.
struct SharedPiece {
  Range where;
  uint64_t offset;
};

class SharedCopies {
 public:
  // Pieces of one arena; those of an earlier one are forgotten.
  void add(const std::shared_ptr<Arena>& arena, const std::vector<SharedPiece>& pieces);
  // A copy of all of `range`, put together from neighbouring pieces, without a checksum; nullptr when any is missing.
  std::shared_ptr<SavedRange> find(Range range) const;
  // Lets go of every piece that overlaps `range`.
  void forget(Range range);
  // Lets go of every piece that is not wholly inside `declared`.
  void keep_only(const RangeSet& declared);
  void clear();

 private:
  std::shared_ptr<Arena> arena_;
  std::map<uint64_t, SharedPiece> pieces_;  // by begin; disjoint
};

}  // namespace baton::pool
