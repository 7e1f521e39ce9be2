// The element hash behind Baton's weight checksums. Compiled by the C++ compiler and by NVRTC, so one
// definition serves the host, the stand-in and the GPU.
#pragma once

#if defined(__CUDACC_RTC__)
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#define UINT64_C(value) value##ULL
#define BATON_HOST_DEVICE __device__ __forceinline__
#else
#include <cstdint>
#define BATON_HOST_DEVICE inline
#endif

namespace baton::copy {

// A pseudo-random factor for each place in a tensor, from 2^32 to 2^33: other places, other factors, up to 2^32 of
// them. The mixing of 32 bits is C. Wellons' lowbias32 (github.com/skeeto/hash-prospector).
BATON_HOST_DEVICE uint64_t place_factor(uint64_t index) {
  uint32_t x = static_cast<uint32_t>(index) + static_cast<uint32_t>(index >> 32) * 0x9E3779B9U;
  x ^= x >> 16;
  x *= 0x7FEB352DU;
  x ^= x >> 15;
  x *= 0x846CA68BU;
  x ^= x >> 16;
  return (UINT64_C(1) << 32) + x;
}

// h(index, value): the sum of h over all elements of a tensor does not depend on who holds which piece, nor on
// the order of adding, but does depend on every value and on where it stands in the tensor: a sum of products with
// pseudo-random factors (multilinear hashing, Carter and Wegman 1979). One changed element changes the sum, whatever
// its change, and so do two that have changed places; more than that go unnoticed once in some 2^32. `value` is the
// element's bit pattern, zero-extended. The GPU's arithmetic units are what limits a sum of 2-byte elements, so h is
// no stronger than it has to be.
BATON_HOST_DEVICE uint64_t element_hash(uint64_t index, uint64_t value) {
  const uint64_t low = static_cast<uint32_t>(value);
  const uint64_t high = value >> 32;
  uint64_t hash = (low + 1) * place_factor(index);
  if (high != 0) hash += high * place_factor(~index);
  return hash;
}

}  // namespace baton::copy
