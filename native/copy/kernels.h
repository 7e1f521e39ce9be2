// What the host and the kernels of kernels.cu agree on. Each kernel takes one parameter, a structure by value:
// cuLaunchKernel's kernelParams[0] points to it. Included by the C++ compiler and by NVRTC.
#pragma once
#include "checksum.h"
#include "rounding.h"

#if !defined(__CUDACC_RTC__)
#include <cstddef>
#endif

namespace baton::copy {

#if !defined(__CUDACC_RTC__)
// Names of the kernels in the PTX module (extern "C").
inline constexpr char kCopyRunsKernel[] = "baton_copy_runs";
inline constexpr char kCopyRangeKernel[] = "baton_copy_range";
inline constexpr char kChecksumItemsKernel[] = "baton_checksum_items";
#endif

// Threads of a block. A warp handles one piece at a time, so pieces are what balances the work.
inline constexpr uint32_t kBlockThreads = 512;
inline constexpr uint32_t kWarpThreads = 32;

// The longest piece that one warp copies.
inline constexpr uint32_t kCopyPieceBytes = 16 * 1024;
// The longest piece that one warp sums up.
inline constexpr uint32_t kChecksumPieceBytes = 64 * 1024;

// What becomes of the bytes on their way.
enum class Conversion : uint16_t {
  kNone = 0,
  kRounded = 1,  // float32 to bfloat16: twice as many bytes are read as written
};

// `bytes` to `dst` from (bases[slot] + src_offset). Any alignment, but of whole elements where they are converted;
// pieces must not overlap in dst.
struct CopyPiece {
  uint32_t slot;
  uint16_t bytes;
  Conversion conversion;
  uint64_t src_offset;
  uint64_t dst;
};

struct CopyRunsParameters {
  const CopyPiece* pieces;
  const uint64_t* bases;  // one address per slot
  uint64_t count;         // of pieces
};

// `bytes` from one address to another, any alignment. The source may be host memory that the GPU can read.
struct CopyRangeParameters {
  uint64_t source;
  uint64_t destination;
  uint64_t bytes;
};

// Adds h(first_element + k, value_k) over `elements` elements at `address` to sums[group]. Rounded: of float32
// elements, at a multiple of 4, the bfloat16 that they become counts.
struct ChecksumPiece {
  uint64_t address;  // any alignment
  uint64_t first_element;
  uint32_t elements;
  uint32_t element_bytes;  // 1, 2, 4 or 8
  uint32_t group;
  Conversion conversion;
  uint16_t reserved;
};

struct ChecksumItemsParameters {
  const ChecksumPiece* pieces;
  uint64_t* sums;  // added to atomically
  uint64_t count;  // of pieces
  uint32_t indices_only;
  uint32_t reserved;
};

#if !defined(__CUDACC_RTC__)
static_assert(sizeof(CopyPiece) == 24);
static_assert(kCopyPieceBytes <= UINT16_MAX);
static_assert(sizeof(CopyRunsParameters) == 24);
static_assert(sizeof(CopyRangeParameters) == 24);
static_assert(sizeof(ChecksumPiece) == 32);
static_assert(sizeof(ChecksumItemsParameters) == 32);
#endif

}  // namespace baton::copy
