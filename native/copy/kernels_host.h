// The kernels of kernels.cu as C++ functions: what a stand-in GPU runs when they are launched, and what tests
// compare the GPU's with. Header-only, so that the stand-in driver needs nothing else of libbaton.
#pragma once
#include <cstring>

#include "kernels.h"

namespace baton::copy {

inline void copy_runs_on_host(const CopyRunsParameters& parameters) {
  for (uint64_t i = 0; i < parameters.count; ++i) {
    const CopyPiece& piece = parameters.pieces[i];
    const auto* source = reinterpret_cast<const unsigned char*>(parameters.bases[piece.slot] + piece.src_offset);
    auto* destination = reinterpret_cast<unsigned char*>(piece.dst);
    if (piece.conversion == Conversion::kNone) {
      std::memcpy(destination, source, piece.bytes);
      continue;
    }
    for (uint32_t k = 0; k < piece.bytes / sizeof(uint16_t); ++k) {
      uint32_t bits = 0;
      std::memcpy(&bits, source + k * sizeof(bits), sizeof(bits));
      const uint16_t rounded = bfloat16_bits(bits);
      std::memcpy(destination + k * sizeof(rounded), &rounded, sizeof(rounded));
    }
  }
}

inline void copy_range_on_host(const CopyRangeParameters& parameters) {
  std::memcpy(reinterpret_cast<void*>(parameters.destination), reinterpret_cast<const void*>(parameters.source),
              parameters.bytes);
}

template <typename Element, bool kRounded = false>
uint64_t checksum_of_elements(uint64_t address, uint64_t first_element, uint64_t elements, bool indices_only) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(address);
  uint64_t sum = 0;
  for (uint64_t k = 0; k < elements; ++k) {
    Element value = 0;
    if (!indices_only) std::memcpy(&value, bytes + k * sizeof(Element), sizeof(Element));
    if constexpr (kRounded) value = bfloat16_bits(value);
    sum += element_hash(first_element + k, value);
  }
  return sum;
}

inline void checksum_items_on_host(const ChecksumItemsParameters& parameters) {
  const bool indices_only = parameters.indices_only != 0;
  for (uint64_t i = 0; i < parameters.count; ++i) {
    const ChecksumPiece& piece = parameters.pieces[i];
    uint64_t sum = 0;
    switch (piece.element_bytes) {
      case 1:
        sum = checksum_of_elements<uint8_t>(piece.address, piece.first_element, piece.elements, indices_only);
        break;
      case 2:
        sum = checksum_of_elements<uint16_t>(piece.address, piece.first_element, piece.elements, indices_only);
        break;
      case 4:
        sum =
            piece.conversion == Conversion::kRounded
                ? checksum_of_elements<uint32_t, true>(piece.address, piece.first_element, piece.elements, indices_only)
                : checksum_of_elements<uint32_t>(piece.address, piece.first_element, piece.elements, indices_only);
        break;
      default:
        sum = checksum_of_elements<uint64_t>(piece.address, piece.first_element, piece.elements, indices_only);
        break;
    }
    parameters.sums[piece.group] += sum;
  }
}

}  // namespace baton::copy
