// Frozen ranges: saved once, and never believed without a checksum.
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseReport;
using pool::Pool;
using pool::RangeSet;
using pool::ResumeReport;
using pool::Worth;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

constexpr uint64_t kFrozenBytes = 3 * kMiB + 13;  // over a segment's end, and no multiple of a word

class Frozen : public ::testing::Test {
 protected:
  void SetUp() override {
    pool = make_pool();
    frozen = allocate(*pool, kFrozenBytes);
    fill(frozen, kFrozenBytes, 1);
    changing = allocate(*pool, kMiB);
    fill(changing, kMiB, 2);
    pool->declare(Worth::kFrozen, range_of(frozen, kFrozenBytes));
  }

  std::unique_ptr<Pool> pool;
  uint64_t frozen = 0;
  uint64_t changing = 0;
};

TEST_F(Frozen, IsSavedOnce) {
  pool->verify_frozen(UINT64_MAX);
  const PauseReport first = take(pool->pause({}));
  EXPECT_EQ(first.saved_bytes, kFrozenBytes + kMiB);
  EXPECT_EQ(first.clean_bytes, 0U);
  for (int cycle = 0; cycle < 3; ++cycle) {
    const ResumeReport resumed = take(pool->resume({}, true));
    EXPECT_EQ(resumed.copied_bytes, kFrozenBytes + kMiB);
    EXPECT_EQ(resumed.verified_bytes, kFrozenBytes);
    EXPECT_TRUE(holds(frozen, kFrozenBytes, 1));
    EXPECT_TRUE(holds(changing, kMiB, cycle + 2));
    fill(changing, kMiB, cycle + 3);
    const PauseReport again = take(pool->pause({}));
    EXPECT_EQ(again.saved_bytes, kMiB);
    EXPECT_EQ(again.clean_bytes, kFrozenBytes);
  }
  BATON_EXPECT_OK(pool->resume({}, true));
}

TEST_F(Frozen, AChangeOfOneBitIsFoundAndNothingIsLost) {
  pool->verify_frozen(UINT64_MAX);
  BATON_EXPECT_OK(pool->pause({}));
  BATON_EXPECT_OK(pool->resume({}, true));
  const uint64_t last = frozen + kFrozenBytes - 1;
  write_bytes(last, {static_cast<uint8_t>(read_bytes(last, 1)[0] ^ 1)});
  const auto failed = pool->pause({});
  ASSERT_EQ(code_of(failed), "FROZEN_CHANGED");
  EXPECT_TRUE(holds(changing, kMiB, 2));
  // Corrected, the pool can go on.
  fill(frozen, kFrozenBytes, 1);
  EXPECT_EQ(take(pool->pause({})).clean_bytes, kFrozenBytes);
  BATON_EXPECT_OK(pool->resume({}, true));
}

TEST_F(Frozen, AChangeIsFoundAtAnyPause) {
  pool->verify_frozen(0);
  for (int cycle = 0; cycle < 3; ++cycle) {
    BATON_EXPECT_OK(pool->pause({}));
    BATON_EXPECT_OK(pool->resume({}, true));
  }
  write_bytes(frozen, {static_cast<uint8_t>(read_bytes(frozen, 1)[0] ^ 1)});
  EXPECT_EQ(code_of(pool->pause({})), "FROZEN_CHANGED");
}

TEST_F(Frozen, ADamagedArenaIsFoundAtResume) {
  auto own = make_pool(0);
  const MemoryFile file(16 * kMiB);
  BATON_EXPECT_OK(own->set_arena(file.fd(), 0, 16 * kMiB));
  const uint64_t block = allocate(*own, kFrozenBytes);
  fill(block, kFrozenBytes, 1);
  own->declare(Worth::kFrozen, range_of(block, kFrozenBytes));
  BATON_EXPECT_OK(own->pause({}));
  uint8_t byte = 0;
  ASSERT_EQ(pread(file.fd(), &byte, 1, 2 * kMiB), 1);
  byte ^= 0x40;
  ASSERT_EQ(pwrite(file.fd(), &byte, 1, 2 * kMiB), 1);
  EXPECT_EQ(code_of(own->resume({}, true)), "FROZEN_CHANGED");
  EXPECT_EQ(own->stats().mapped_segments, 0U);
  byte ^= 0x40;
  ASSERT_EQ(pwrite(file.fd(), &byte, 1, 2 * kMiB), 1);
  BATON_EXPECT_OK(own->resume({}, true));
  EXPECT_TRUE(holds(block, kFrozenBytes, 1));
}

TEST_F(Frozen, WhatComesBackIsVerifiedAtTheFirstResumesOnly) {
  pool->verify_frozen(2);
  for (int cycle = 0; cycle < 4; ++cycle) {
    BATON_EXPECT_OK(pool->pause({}));
    EXPECT_EQ(take(pool->resume({}, true)).verified_bytes, cycle < 2 ? kFrozenBytes : 0U) << cycle;
  }
}

TEST_F(Frozen, AnotherDeclarationSavesAgainWhatItAddsOnly) {
  BATON_EXPECT_OK(pool->pause({}));
  // Declared anew while paused: the saved bytes are all there is of them.
  pool->declare(Worth::kFrozen, range_of(changing, kMiB));
  BATON_EXPECT_OK(pool->resume({}, true));
  EXPECT_TRUE(holds(frozen, kFrozenBytes, 1));
  EXPECT_TRUE(holds(changing, kMiB, 2));
  const PauseReport again = take(pool->pause({}));
  EXPECT_EQ(again.saved_bytes, kFrozenBytes + kMiB);
  BATON_EXPECT_OK(pool->resume({}, true));
  EXPECT_EQ(take(pool->pause({})).clean_bytes, kMiB);
  BATON_EXPECT_OK(pool->resume({}, true));
  EXPECT_TRUE(holds(frozen, kFrozenBytes, 1));
}

TEST_F(Frozen, CopiesStayInTheArenaUntilTheirBlockIsFreed) {
  BATON_EXPECT_OK(pool->pause({}));
  BATON_EXPECT_OK(pool->resume({}, true));
  const uint64_t kept = pool->stats().arena_used_bytes;
  EXPECT_GE(kept, kFrozenBytes);
  EXPECT_LT(kept, kFrozenBytes + 4096);
  BATON_EXPECT_OK(pool->free(frozen));
  EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
}

TEST_F(Frozen, AFailedPauseLeavesNoCopyThatLooksClean) {
  const MemoryFile small(4 * kMiB);  // the frozen range alone would fit
  BATON_EXPECT_OK(pool->set_arena(small.fd(), 0, 3 * kMiB + 4096));
  EXPECT_EQ(code_of(pool->pause({})), "ARENA_TOO_SMALL");
  EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
  const MemoryFile large(8 * kMiB);
  BATON_EXPECT_OK(pool->set_arena(large.fd(), 0, 8 * kMiB));
  EXPECT_EQ(take(pool->pause({})).saved_bytes, kFrozenBytes + kMiB);
  BATON_EXPECT_OK(pool->resume({}, true));
}

}  // namespace
}  // namespace baton::test
