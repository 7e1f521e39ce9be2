// Checksums of frozen ranges: a declaration that nothing changes is checked, never believed.
#include "native/copy/checksum_items.h"
#include "native/pool/pool.h"

namespace baton::pool {
namespace {

constexpr uint32_t kWordBytes = 8;

// The items that sum up `range` as it lies at `address`: whole words, then the bytes that are left.
void append_items(std::vector<copy::ChecksumItem>& items, uint64_t address, uint64_t bytes, uint32_t group) {
  const uint64_t words = bytes / kWordBytes;
  if (words > 0) items.push_back({address, 0, words, kWordBytes, group});
  if (bytes % kWordBytes > 0) items.push_back({address + words * kWordBytes, words, bytes % kWordBytes, 1, group});
}

Error changed(const std::string& name, Range range, const std::string& when) {
  return Error{
      .code = "FROZEN_CHANGED",
      .message = "A range of pool '" + name + "' that was declared frozen has changed " + when + ".",
      .expected = "the bytes that were saved when it was first released",
      .found = "other bytes in the " + std::to_string(range.bytes()) + " bytes at " + std::to_string(range.begin),
      .action = "Declare only what no step writes as frozen.",
      .driver_result = std::nullopt};
}

}  // namespace

Result<std::vector<uint64_t>> Pool::checksums(const std::vector<Range>& ranges) const {
  std::vector<uint64_t> sums(ranges.size(), 0);
  if (ranges.empty()) return sums;
  std::vector<copy::ChecksumItem> items;
  for (size_t i = 0; i < ranges.size(); ++i) {
    append_items(items, ranges[i].begin, ranges[i].bytes(), static_cast<uint32_t>(i));
  }
  BATON_TRY(copy::checksum_items(gpu_, items, false, sums));
  return sums;
}

// What is clean is not copied again, so a change would be lost without a word.
Status Pool::check_clean_copies(const std::vector<Release>& releases) {
  std::vector<const SavedRange*> clean;
  std::vector<Range> ranges;
  for (const Release& release : releases) {
    for (const auto& saved : release.contents.saved) {
      if (!saved->checksum || frozen_copies_.find(saved->where()) != saved) continue;
      clean.push_back(saved.get());
      ranges.push_back(saved->where());
    }
  }
  BATON_ASSIGN(const std::vector<uint64_t> sums, checksums(ranges));
  for (size_t i = 0; i < clean.size(); ++i) {
    if (sums[i] != *clean[i]->checksum) return changed(name_, ranges[i], "since it was saved");
  }
  return {};
}

// Compares frozen contents as they lie at `address` with what they were when they were saved.
Status Pool::verify_contents(const Contents& contents, uint64_t segment_begin, uint64_t address,
                             uint64_t& verified_bytes) const {
  std::vector<const SavedRange*> frozen;
  std::vector<Range> ranges;
  for (const auto& saved : contents.saved) {
    if (!saved->checksum) continue;
    const uint64_t begin = address + (saved->where().begin - segment_begin);
    frozen.push_back(saved.get());
    ranges.push_back({begin, begin + saved->where().bytes()});
  }
  BATON_ASSIGN(const std::vector<uint64_t> sums, checksums(ranges));
  for (size_t i = 0; i < frozen.size(); ++i) {
    if (sums[i] != *frozen[i]->checksum) return changed(name_, frozen[i]->where(), "in the arena");
    verified_bytes += ranges[i].bytes();
  }
  return {};
}

}  // namespace baton::pool
