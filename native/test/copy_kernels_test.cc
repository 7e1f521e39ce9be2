// The source of the GPU's kernels, compiled for the CPU, against their C++ twins: lane by lane, as a warp of 32 would
// go through it. What a compiler for GPUs makes of it is checked on one (test/gpu/pool_kernels.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
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
    const auto bytes = static_cast<uint32_t>(round < 4 ? copy::kCopyPieceBytes : random() % 900);
    const uint64_t bases[] = {0, reinterpret_cast<uint64_t>(source.data())};
    const copy::CopyPiece piece{1, bytes, from, reinterpret_cast<uint64_t>(target.data()) + to};
    for (threadIdx.x = 0; threadIdx.x < kLanes; ++threadIdx.x)
      baton_copy_runs({&piece, bases, 1});
    std::vector<uint8_t> wanted(target.size(), 0xEE);
    std::memcpy(wanted.data() + to, source.data() + from, bytes);
    ASSERT_EQ(target, wanted) << "round " << round << ", " << bytes << " bytes from " << from << " to " << to;
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
