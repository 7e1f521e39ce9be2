// float32 to bfloat16. Compiled by the C++ compiler and by NVRTC, as checksum.h is.
#pragma once
#include "checksum.h"

namespace baton::copy {

// The bit pattern of a bfloat16, from that of a float32: to the nearest, ties to even, as torch and CUDA's
// __float2bfloat16_rn do it. What is no number becomes CUDA's NaN.
BATON_HOST_DEVICE uint16_t bfloat16_bits(uint32_t bits) {
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace baton::copy
