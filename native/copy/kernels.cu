// The GPU kernels. scripts/make_ptx.py compiles this file to kernels.ptx, which is kept in the repository, so that
// building Baton needs no CUDA toolkit. Their C++ twins are in kernels_host.h.
#include "kernels.h"

namespace {

__device__ __forceinline__ uint32_t warp_index() {
  return (blockIdx.x * blockDim.x + threadIdx.x) / baton::copy::kWarpThreads;
}

__device__ __forceinline__ uint32_t warps() { return gridDim.x * blockDim.x / baton::copy::kWarpThreads; }

// Copies `count` words with the 32 lanes of a warp; four loads in flight a lane before the first store.
template <typename Word>
__device__ __forceinline__ void copy_words(const Word *source, Word *destination, uint32_t count, uint32_t lane) {
  constexpr uint32_t kStep = baton::copy::kWarpThreads;
  uint32_t i = lane;
  for (; i + 3 * kStep < count; i += 4 * kStep) {
    const Word a = source[i];
    const Word b = source[i + kStep];
    const Word c = source[i + 2 * kStep];
    const Word d = source[i + 3 * kStep];
    destination[i] = a;
    destination[i + kStep] = b;
    destination[i + 2 * kStep] = c;
    destination[i + 3 * kStep] = d;
  }
  for (; i < count; i += kStep) destination[i] = source[i];
}

// Copies with words as wide as source and destination agree on: bytes up to the first aligned word, words, and
// the bytes that are left.
template <typename Word>
__device__ __forceinline__ void copy_aligned(const uint8_t *source, uint8_t *destination, uint32_t bytes,
                                             uint32_t lane) {
  uint32_t head = static_cast<uint32_t>(-reinterpret_cast<uint64_t>(destination)) & (sizeof(Word) - 1);
  if (head > bytes) head = bytes;
  const uint32_t count = (bytes - head) / sizeof(Word);
  const uint32_t tail = head + count * static_cast<uint32_t>(sizeof(Word));
  if (lane < head) destination[lane] = source[lane];
  copy_words(reinterpret_cast<const Word *>(source + head), reinterpret_cast<Word *>(destination + head), count,
             lane);
  if (tail + lane < bytes) destination[tail + lane] = source[tail + lane];
}

// With the widest words that are aligned in both: where they disagree in their lowest address bits, there are none.
__device__ __forceinline__ void copy_piece(uint64_t from, uint64_t to, uint32_t bytes, uint32_t lane) {
  const uint8_t *source = reinterpret_cast<const uint8_t *>(from);
  uint8_t *destination = reinterpret_cast<uint8_t *>(to);
  const uint64_t disagreement = from ^ to;
  if (disagreement % 16 == 0) {
    copy_aligned<uint4>(source, destination, bytes, lane);
  } else if (disagreement % 8 == 0) {
    copy_aligned<uint2>(source, destination, bytes, lane);
  } else if (disagreement % 4 == 0) {
    copy_aligned<uint32_t>(source, destination, bytes, lane);
  } else if (disagreement % 2 == 0) {
    copy_aligned<uint16_t>(source, destination, bytes, lane);
  } else {
    copy_aligned<uint8_t>(source, destination, bytes, lane);
  }
}

__device__ __forceinline__ uint32_t rounded_pair(uint32_t low, uint32_t high) {
  return baton::copy::bfloat16_bits(low) | static_cast<uint32_t>(baton::copy::bfloat16_bits(high)) << 16;
}

// `bytes` of bfloat16 from twice as many of float32. Four at a time where both are aligned for that, some loads in flight
// before the first store.
__device__ __forceinline__ void round_piece(uint64_t from, uint64_t to, uint32_t bytes, uint32_t lane) {
  constexpr uint32_t kStep = baton::copy::kWarpThreads;
  constexpr uint32_t kPerVector = 4;
  constexpr uint32_t kAhead = 4;
  const uint32_t *source = reinterpret_cast<const uint32_t *>(from);
  uint16_t *destination = reinterpret_cast<uint16_t *>(to);
  const uint32_t count = bytes / sizeof(uint16_t);
  uint32_t vectors = 0;
  if (from % sizeof(uint4) == 0 && to % sizeof(uint2) == 0) {
    vectors = count / kPerVector;
    const uint4 *words = reinterpret_cast<const uint4 *>(source);
    uint2 *rounded = reinterpret_cast<uint2 *>(destination);
    uint32_t v = lane;
    for (; v + (kAhead - 1) * kStep < vectors; v += kAhead * kStep) {
      uint4 ahead[kAhead];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) ahead[k] = words[v + k * kStep];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        rounded[v + k * kStep] = {rounded_pair(ahead[k].x, ahead[k].y), rounded_pair(ahead[k].z, ahead[k].w)};
      }
    }
    for (; v < vectors; v += kStep) {
      const uint4 word = words[v];
      rounded[v] = {rounded_pair(word.x, word.y), rounded_pair(word.z, word.w)};
    }
  }
  for (uint32_t i = vectors * kPerVector + lane; i < count; i += kStep) {
    destination[i] = baton::copy::bfloat16_bits(source[i]);
  }
}

template <typename Element>
__device__ __forceinline__ uint64_t element_at(const uint8_t *address) {
  if (reinterpret_cast<uint64_t>(address) % sizeof(Element) == 0) return *reinterpret_cast<const Element *>(address);
  uint64_t value = 0;
  for (uint32_t i = 0; i < sizeof(Element); ++i) value |= static_cast<uint64_t>(address[i]) << (8 * i);
  return value;
}

// The bit pattern that counts for an element with this one.
template <bool kRounded>
__device__ __forceinline__ uint64_t counted(uint64_t element) {
  return kRounded ? baton::copy::bfloat16_bits(static_cast<uint32_t>(element)) : element;
}

// The elements of 16 bytes, of which the first stands at `first` in its tensor.
template <typename Element, bool kRounded>
__device__ __forceinline__ uint64_t sum_vector(const uint4 &vector, uint64_t first) {
  constexpr uint32_t kPerVector = sizeof(uint4) / sizeof(Element);
  Element elements[kPerVector];
  memcpy(elements, &vector, sizeof(vector));
  uint64_t sum = 0;
#pragma unroll
  for (uint32_t k = 0; k < kPerVector; ++k) {
    sum += baton::copy::element_hash(first + k, counted<kRounded>(elements[k]));
  }
  return sum;
}

// A lane's share of a piece. Where the elements are 16-byte aligned a lane reads 16 bytes at a time, and some such words
// before it computes with the first.
template <typename Element, bool kRounded = false>
__device__ __forceinline__ uint64_t sum_elements(const baton::copy::ChecksumPiece &piece, bool indices_only,
                                                 uint32_t lane) {
  constexpr uint32_t kStep = baton::copy::kWarpThreads;
  constexpr uint32_t kPerVector = sizeof(uint4) / sizeof(Element);
  // Of single bytes there are few, and much code for 16 of them.
  constexpr uint32_t kAhead = sizeof(Element) == 1 ? 1 : 4;
  uint64_t sum = 0;
  if (indices_only) {
    for (uint32_t k = lane; k < piece.elements; k += kStep) {
      sum += baton::copy::element_hash(piece.first_element + k, 0);
    }
    return sum;
  }
  const uint8_t *bytes = reinterpret_cast<const uint8_t *>(piece.address);
  uint32_t vectors = 0;
  if (piece.address % sizeof(uint4) == 0) {
    vectors = piece.elements / kPerVector;
    const uint4 *words = reinterpret_cast<const uint4 *>(bytes);
    uint32_t v = lane;
    for (; v + (kAhead - 1) * kStep < vectors; v += kAhead * kStep) {
      uint4 ahead[kAhead];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) ahead[k] = words[v + k * kStep];
#pragma unroll
      for (uint32_t k = 0; k < kAhead; ++k) {
        sum += sum_vector<Element, kRounded>(ahead[k], piece.first_element + (v + k * kStep) * kPerVector);
      }
    }
    for (; v < vectors; v += kStep) {
      sum += sum_vector<Element, kRounded>(words[v], piece.first_element + v * kPerVector);
    }
  }
  for (uint32_t k = vectors * kPerVector + lane; k < piece.elements; k += kStep) {
    const uint64_t element = element_at<Element>(bytes + static_cast<uint64_t>(k) * sizeof(Element));
    sum += baton::copy::element_hash(piece.first_element + k, counted<kRounded>(element));
  }
  return sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(512) baton_copy_runs(baton::copy::CopyRunsParameters parameters) {
  const uint32_t lane = threadIdx.x % baton::copy::kWarpThreads;
  for (uint64_t i = warp_index(); i < parameters.count; i += warps()) {
    const baton::copy::CopyPiece piece = parameters.pieces[i];
    const uint64_t source = parameters.bases[piece.slot] + piece.src_offset;
    if (piece.conversion == baton::copy::Conversion::kRounded) {
      round_piece(source, piece.dst, piece.bytes, lane);
    } else {
      copy_piece(source, piece.dst, piece.bytes, lane);
    }
  }
}

extern "C" __global__ void __launch_bounds__(512) baton_copy_range(baton::copy::CopyRangeParameters parameters) {
  constexpr uint64_t kPiece = baton::copy::kCopyPieceBytes;
  const uint32_t lane = threadIdx.x % baton::copy::kWarpThreads;
  const uint64_t step = warps() * kPiece;
  for (uint64_t begin = warp_index() * kPiece; begin < parameters.bytes; begin += step) {
    const uint64_t left = parameters.bytes - begin;
    copy_piece(parameters.source + begin, parameters.destination + begin,
               static_cast<uint32_t>(left < kPiece ? left : kPiece), lane);
  }
}

extern "C" __global__ void __launch_bounds__(512)
    baton_checksum_items(baton::copy::ChecksumItemsParameters parameters) {
  const uint32_t lane = threadIdx.x % baton::copy::kWarpThreads;
  for (uint64_t i = warp_index(); i < parameters.count; i += warps()) {
    const baton::copy::ChecksumPiece piece = parameters.pieces[i];
    const bool indices_only = parameters.indices_only != 0;
    uint64_t sum = 0;
    if (piece.element_bytes == 1) {
      sum = sum_elements<uint8_t>(piece, indices_only, lane);
    } else if (piece.element_bytes == 2) {
      sum = sum_elements<uint16_t>(piece, indices_only, lane);
    } else if (piece.element_bytes == 4) {
      sum = piece.conversion == baton::copy::Conversion::kRounded
                ? sum_elements<uint32_t, true>(piece, indices_only, lane)
                : sum_elements<uint32_t>(piece, indices_only, lane);
    } else {
      sum = sum_elements<uint64_t>(piece, indices_only, lane);
    }
    for (uint32_t step = baton::copy::kWarpThreads / 2; step > 0; step /= 2) {
      sum += __shfl_down_sync(0xFFFFFFFFU, sum, step);
    }
    if (lane == 0) atomicAdd(&parameters.sums[piece.group], sum);
  }
}
