// Blocks of a pool: where they come from, and what is said when they cannot.
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::Pool;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

TEST(Trim, ReleasesSegmentsInWhichNoBlockLives) {
  auto pool = make_pool();
  const uint64_t a = allocate(*pool, 2 * kSegment + 100);
  const uint64_t b = allocate(*pool, 100);  // behind a, in its last segment
  ASSERT_LT(b - a, 3 * kSegment);
  const uint64_t free_before = free_device_bytes();
  EXPECT_EQ(take(pool->trim()), 0U);
  BATON_EXPECT_OK(pool->free(a));
  EXPECT_EQ(take(pool->trim()), 2 * kSegment);
  EXPECT_EQ(free_device_bytes(), free_before + 2 * kSegment);
  EXPECT_EQ(allocate(*pool, 2 * kSegment), a);  // the addresses are used again
}

TEST(Allocate, OutOfMemorySaysWhatWasWantedAndWhatThereIs) {
  auto pool = make_pool();
  const uint64_t free_before = free_device_bytes();
  const auto failed = pool->allocate(free_before + kSegment, 64);
  ASSERT_EQ(code_of(failed), "OUT_OF_MEMORY");
  const Error& error = failed.error();
  EXPECT_NE(error.message.find("GPU 0"), std::string::npos) << error.message;
  EXPECT_NE(error.expected.find(std::to_string(kSegment)), std::string::npos) << error.expected;
  EXPECT_NE(error.found.find(std::to_string(kDeviceBytes)), std::string::npos) << error.found;
  EXPECT_EQ(free_device_bytes(), free_before);  // what was created on the way is given back
  EXPECT_EQ(pool->stats().segments, 0U);
}

TEST(Allocate, UnusedSegmentsGoBeforeMemoryIsOut) {
  auto pool = make_pool(0);
  const uint64_t segments = free_device_bytes() / kSegment;
  std::vector<uint64_t> blocks;
  for (uint64_t i = 0; i < segments; ++i)
    blocks.push_back(allocate(*pool, kSegment));
  ASSERT_EQ(code_of(pool->allocate(1, 64)), "OUT_OF_MEMORY");
  for (uint64_t i = 0; i < segments; i += 2)
    BATON_EXPECT_OK(pool->free(blocks[i]));
  // Half of the memory is free, in single segments: not in one piece where it is.
  allocate(*pool, (segments / 2) * kSegment);
}

TEST(Allocate, WrongArgumentsAreErrors) {
  auto pool = make_pool(0);
  EXPECT_EQ(code_of(pool->allocate(0, 64)), "INVALID_ARGUMENT");
  EXPECT_EQ(code_of(pool->allocate(8, 48)), "INVALID_ARGUMENT");
  EXPECT_EQ(code_of(pool->allocate(8, 0)), "INVALID_ARGUMENT");
  EXPECT_EQ(code_of(pool->allocate(UINT64_MAX, 64)), "OUT_OF_ADDRESS_SPACE");
  const uint64_t block = allocate(*pool, 100);
  EXPECT_EQ(block % 512, 0U);
  EXPECT_EQ(code_of(pool->free(block + 1)), "NOT_A_BLOCK");
  BATON_EXPECT_OK(pool->free(block));
  EXPECT_EQ(code_of(pool->free(block)), "NOT_A_BLOCK");
  pool::Options odd;
  odd.segment_bytes = kSegment + 1;
  EXPECT_EQ(code_of(Pool::create(odd)), "INVALID_ARGUMENT");
  odd.segment_bytes = 0;
  odd.device = 99;
  EXPECT_EQ(code_of(Pool::create(odd)), "INVALID_DEVICE");
}

}  // namespace
}  // namespace baton::test
