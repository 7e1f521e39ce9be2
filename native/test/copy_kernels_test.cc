// The source of the GPU's kernels, compiled for the CPU, against their C++ twins: lane by lane, as a warp of 32 would
// go through it. What a compiler for GPUs makes of it is checked on one (test/gpu/pool_kernels.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "native/copy/kernels_host.h"

// What CUDA has built in.
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
struct Dimensions {
  unsigned x;
};
static const Dimensions gridDim{1};
static const Dimensions blockIdx{0};
static const Dimensions blockDim{32};
static thread_local Dimensions threadIdx{0};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
// The lanes come one after the other here, so each adds its own part and none another's.
static uint64_t __shfl_down_sync(unsigned, uint64_t, unsigned) {
  return 0;
}
static void atomicAdd(uint64_t* sum, uint64_t value) {
  *sum += value;
}
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
#include "native/copy/kernels.cu"

namespace baton::test {
namespace {

constexpr uint32_t kLanes = copy::kWarpThreads;

std::vector<uint8_t> random_bytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes)
    byte = static_cast<uint8_t>(random());
  return bytes;
}

// Halves of float32's patterns at which rounding goes up, down and to the even one, into infinity, and NaN.
std::vector<uint32_t> floats(size_t count, uint64_t seed) {
  constexpr uint32_t kSpecial[] = {0,          0x80000000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F8000,
                                   0x7F7F7FFF, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x00008000};
  std::mt19937_64 random(seed);
  std::vector<uint32_t> made(count);
  for (uint32_t& one : made) {
    const auto bits = static_cast<uint32_t>(random());
    one = bits % 4 != 0 ? bits : kSpecial[(bits / 4) % std::size(kSpecial)];
  }
  return made;
}

// By the definition: of the two neighbours in bfloat16 the nearer one, of two equally near the even one.
uint16_t nearest_bfloat16(uint32_t bits) {
  const auto value_of = [](uint32_t pattern) {
    if ((pattern & 0x7FFFFFFF) == 0x7F800000) return (pattern >> 31 != 0 ? -1 : 1) * 0x1p128;
    float value = 0;
    std::memcpy(&value, &pattern, sizeof(value));
    return static_cast<double>(value);
  };
  const double value = value_of(bits);
  if (std::isnan(value)) return 0x7FFF;
  const uint32_t inner = bits & 0xFFFF0000;
  if (inner == bits) return static_cast<uint16_t>(bits >> 16);
  const uint32_t outer = inner + 0x10000;
  const double back = std::abs(value - value_of(inner));
  const double on = std::abs(value_of(outer) - value);
  const bool up = on < back || (on == back && (inner >> 16) % 2 != 0);
  return static_cast<uint16_t>((up ? outer : inner) >> 16);
}

TEST(Kernels, RoundingIsToTheNearestAndTiesToEven) {
  for (const uint32_t bits : floats(200000, 9))
    ASSERT_EQ(copy::bfloat16_bits(bits), nearest_bfloat16(bits)) << std::hex << bits;
}

template <typename Element>
void sums_agree() {
  std::vector<uint8_t> bytes = random_bytes(copy::kChecksumPieceBytes + 64, sizeof(Element));
  auto base = reinterpret_cast<uint64_t>(bytes.data());
  base += (16 - base % 16) % 16;
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    copy::ChecksumPiece piece{};
    piece.address = base + (round % 2 == 0 ? 0 : random() % 16);
    // Places around 2^32 too, where the upper half of one begins to count.
    piece.first_element = round % 3 == 0 ? (1ULL << 32) - random() % 3000 : random() % (1ULL << 40);
    const uint32_t most = copy::kChecksumPieceBytes / sizeof(Element);
    piece.elements = round < 4 ? most - static_cast<uint32_t>(round) : static_cast<uint32_t>(random() % 3000);
    piece.element_bytes = sizeof(Element);
    for (const bool indices_only : {false, true}) {
      uint64_t sum = 0;
      for (uint32_t lane = 0; lane < kLanes; ++lane)
        sum += sum_elements<Element>(piece, indices_only, lane);
      ASSERT_EQ(sum,
                copy::checksum_of_elements<Element>(piece.address, piece.first_element, piece.elements, indices_only))
          << "round " << round;
    }
  }
}

TEST(Kernels, SumsOfEveryWidthAgreeWithTheTwin) {
  sums_agree<uint8_t>();
  sums_agree<uint16_t>();
  sums_agree<uint32_t>();
  sums_agree<uint64_t>();
}

// The whole kernel, with the lanes in the order of their numbers.
TEST(Kernels, RunsOfEveryAlignmentAreCopiedAndNothingElse) {
  const std::vector<uint8_t> source = random_bytes(copy::kCopyPieceBytes + 64, 1);
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<uint8_t> target(copy::kCopyPieceBytes + 64, 0xEE);
    const uint64_t from = random() % 32;
    const uint64_t to = round % 3 == 0 ? from : random() % 32;
    const auto bytes = static_cast<uint16_t>(round < 4 ? copy::kCopyPieceBytes : random() % 900);
    const uint64_t bases[] = {0, reinterpret_cast<uint64_t>(source.data())};
    const copy::CopyPiece piece{1, bytes, copy::Conversion::kNone, from,
                                reinterpret_cast<uint64_t>(target.data()) + to};
    for (threadIdx.x = 0; threadIdx.x < kLanes; ++threadIdx.x)
      baton_copy_runs({&piece, bases, 1});
    std::vector<uint8_t> wanted(target.size(), 0xEE);
    std::memcpy(wanted.data() + to, source.data() + from, bytes);
    ASSERT_EQ(target, wanted) << "round " << round << ", " << bytes << " bytes from " << from << " to " << to;
  }
}

TEST(Kernels, RunsThatAreRoundedAgreeWithTheDefinition) {
  const std::vector<uint32_t> source = floats(copy::kCopyPieceBytes, 4);
  std::mt19937_64 random(6);
  for (int round = 0; round < 300; ++round) {
    std::vector<uint16_t> target(copy::kCopyPieceBytes, 0xEEEE);
    const uint64_t from = random() % 16;
    const uint64_t to = round % 3 == 0 ? from : random() % 16;
    const size_t elements = round < 4 ? copy::kCopyPieceBytes / 2 : random() % 900;
    const uint64_t bases[] = {0, reinterpret_cast<uint64_t>(source.data())};
    const copy::CopyPiece piece{1, static_cast<uint16_t>(2 * elements), copy::Conversion::kRounded, 4 * from,
                                reinterpret_cast<uint64_t>(target.data() + to)};
    for (threadIdx.x = 0; threadIdx.x < kLanes; ++threadIdx.x)
      baton_copy_runs({&piece, bases, 1});
    std::vector<uint16_t> wanted(target.size(), 0xEEEE);
    std::transform(source.begin() + static_cast<ptrdiff_t>(from),
                   source.begin() + static_cast<ptrdiff_t>(from + elements),
                   wanted.begin() + static_cast<ptrdiff_t>(to), nearest_bfloat16);
    ASSERT_EQ(target, wanted) << "round " << round << ", " << elements << " elements from " << from << " to " << to;
    std::fill(target.begin(), target.end(), 0xEEEE);
    copy::copy_runs_on_host({&piece, bases, 1});
    ASSERT_EQ(target, wanted) << "the twin, round " << round;
  }
}

TEST(Kernels, SumsOfRoundedElementsAreThoseOfWhatTheyBecome) {
  const std::vector<uint32_t> source = floats(20000, 8);
  std::vector<uint16_t> rounded(source.size());
  std::transform(source.begin(), source.end(), rounded.begin(), nearest_bfloat16);
  std::mt19937_64 random(2);
  for (int round = 0; round < 100; ++round) {
    const uint64_t first = random() % 16;
    const auto elements = static_cast<uint32_t>(round < 4 ? 16000 : random() % 900);
    copy::ChecksumPiece piece{};
    piece.address = reinterpret_cast<uint64_t>(source.data() + first);
    piece.first_element = random();
    piece.elements = elements;
    piece.element_bytes = 4;
    piece.conversion = copy::Conversion::kRounded;
    const uint64_t wanted = copy::checksum_of_elements<uint16_t>(reinterpret_cast<uint64_t>(rounded.data() + first),
                                                                 piece.first_element, elements, false);
    uint64_t sum = 0;
    for (threadIdx.x = 0; threadIdx.x < kLanes; ++threadIdx.x)
      baton_checksum_items({&piece, &sum, 1, 0, 0});
    uint64_t twin = 0;
    copy::checksum_items_on_host({&piece, &twin, 1, 0, 0});
    // A lane that is no first one adds nothing here: only lane 0's share is in `sum`.
    uint64_t lanes = 0;
    for (uint32_t lane = 0; lane < kLanes; ++lane)
      lanes += sum_elements<uint32_t, true>(piece, false, lane);
    ASSERT_EQ(lanes, wanted) << "round " << round;
    ASSERT_EQ(twin, wanted) << "round " << round;
    ASSERT_EQ(sum, (sum_elements<uint32_t, true>(piece, false, 0)));
  }
}

TEST(Kernels, RangesOfEveryAlignmentAndLengthAreCopiedAndNothingElse) {
  const std::vector<uint8_t> source = random_bytes(5 * copy::kCopyPieceBytes, 2);
  std::mt19937_64 random(5);
  for (int round = 0; round < 100; ++round) {
    std::vector<uint8_t> target(source.size(), 0xEE);
    const uint64_t from = random() % 32;
    const uint64_t to = round % 2 == 0 ? from : random() % 32;
    const uint64_t pieces = random() % 4;
    // Whole pieces too.
    const uint64_t bytes = pieces * copy::kCopyPieceBytes + (round % 5 == 0 ? 0 : random() % copy::kCopyPieceBytes);
    for (threadIdx.x = 0; threadIdx.x < kLanes; ++threadIdx.x) {
      baton_copy_range(
          {reinterpret_cast<uint64_t>(source.data()) + from, reinterpret_cast<uint64_t>(target.data()) + to, bytes});
    }
    std::vector<uint8_t> wanted(target.size(), 0xEE);
    std::memcpy(wanted.data() + to, source.data() + from, bytes);
    ASSERT_EQ(target, wanted) << "round " << round << ", " << bytes << " bytes from " << from << " to " << to;
  }
}

}  // namespace
}  // namespace baton::test
