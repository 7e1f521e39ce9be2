// Layout-invariant checksums of device memory (see checksum.h for the hash).
#pragma once
#include <cstdint>
#include <span>

#include "native/copy/gpu.h"
#include "native/copy/kernels.h"

namespace baton::copy {

// `elements` of `element_bytes` (1, 2, 4 or 8) at `address`, the first of which is element `first_element` of its
// tensor; its sum is added to group `group`.
struct ChecksumItem {
  uint64_t address;
  uint64_t first_element;
  uint64_t elements;
  uint32_t element_bytes;
  uint32_t group;
  Conversion conversion = Conversion::kNone;
};

// Sets sums[g] to the sum (mod 2^64) over the items of group g. indices_only: every value counts as 0 and no
// memory is read. Waits for what this process has under way on the GPU. Uses a scratch buffer of under 1 MiB of
// device memory, allocated by the first call and kept, so that it works on a GPU that has filled up since.
Status checksum_items(const Gpu& gpu, std::span<const ChecksumItem> items, bool indices_only, std::span<uint64_t> sums);

}  // namespace baton::copy
