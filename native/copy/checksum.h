// The element hash behind Baton's weight checksums. Compiled by the C++ compiler and by NVRTC, so one
// definition serves the host, the stand-in and the GPU.
#pragma once

#if defined(__CUDACC_RTC__)
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#define BATON_HOST_DEVICE __device__ __forceinline__
#else
#include <cstdint>
#define BATON_HOST_DEVICE inline
#endif

namespace baton::copy {

// h(index, value): the sum of h over all elements of a tensor does not depend on who holds which piece, nor on
// the order of adding, but does depend on every value and on where it stands in the tensor.
// `value` is the element's bit pattern, zero-extended. The finaliser is splitmix64's.
BATON_HOST_DEVICE uint64_t element_hash(uint64_t index, uint64_t value) {
  uint64_t z = value + 0x9E3779B97F4A7C15ULL * (index + 1);
  z ^= z >> 30;
  z *= 0xBF58476D1CE4E5B9ULL;
  z ^= z >> 27;
  z *= 0x94D049BB133111EBULL;
  z ^= z >> 31;
  return z;
}

}  // namespace baton::copy
