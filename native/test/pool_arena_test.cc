// The host memory that a paused pool lives in.
#include <thread>

#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseRequest;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

TEST(Arena, MissingOrTooSmallIsAnErrorAndChangesNothing) {
  auto pool = make_pool(0);
  const uint64_t block = allocate(*pool, 2 * kSegment);
  fill(block, 2 * kSegment, 8);
  EXPECT_EQ(code_of(pool->pause({})), "NO_ARENA");
  const MemoryFile file(4 * kMiB);
  BATON_EXPECT_OK(pool->set_arena(file.fd(), kMiB, 3 * kMiB));
  const auto failed = pool->pause({});
  ASSERT_EQ(code_of(failed), "ARENA_TOO_SMALL");
  EXPECT_NE(failed.error().expected.find(std::to_string(2 * kSegment)), std::string::npos);
  EXPECT_NE(failed.error().found.find(std::to_string(3 * kMiB)), std::string::npos);
  EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
  EXPECT_TRUE(holds(block, 2 * kSegment, 8));
  // One segment fits; then the arena is in use.
  PauseRequest request;
  request.want_bytes = kSegment;
  BATON_EXPECT_OK(pool->pause(request));
  EXPECT_EQ(code_of(pool->set_arena(file.fd(), 0, kMiB)), "ARENA_IN_USE");
  EXPECT_EQ(code_of(pool->pause({})), "ARENA_TOO_SMALL");
  BATON_EXPECT_OK(pool->resume({}, true));
  BATON_EXPECT_OK(pool->set_arena(file.fd(), 0, 4 * kMiB));
  BATON_EXPECT_OK(pool->pause({}));
  BATON_EXPECT_OK(pool->resume({}, true));
  EXPECT_TRUE(holds(block, 2 * kSegment, 8));
}

TEST(Arena, UnusableDescriptorsAreErrors) {
  auto pool = make_pool(0);
  const MemoryFile file(kMiB);
  EXPECT_EQ(code_of(pool->set_arena(file.fd(), 0, 2 * kMiB)), "ARENA_UNUSABLE");
  EXPECT_EQ(code_of(pool->set_arena(file.fd(), 100, kMiB / 2)), "ARENA_UNUSABLE");
  EXPECT_EQ(code_of(pool->set_arena(file.fd(), 0, 0)), "ARENA_UNUSABLE");
  EXPECT_EQ(code_of(pool->set_arena(-1, 0, kMiB)), "ARENA_UNUSABLE");
}

TEST(Arena, GrowsWithTheMemfdAndForThePauseThatNeedsIt) {
  auto pool = make_pool(0);
  EXPECT_EQ(code_of(pool->grow_arena(kMiB)), "NO_ARENA");
  const MemoryFile file(0);
  BATON_EXPECT_OK(pool->open_arena(file.fd(), 0, 64 * kMiB));
  EXPECT_EQ(pool->stats().arena_bytes, 0U);
  // Pieces that are registered by themselves: what is saved lies across their ends.
  for (int piece = 1; piece <= 5; ++piece)
    BATON_EXPECT_OK(pool->grow_arena(piece * (kMiB / 2 + 4096)));
  EXPECT_EQ(pool->stats().arena_bytes, 5 * (kMiB / 2 + 4096));
  const uint64_t block = allocate(*pool, 3 * kSegment);
  fill(block, 3 * kSegment, 4);
  BATON_EXPECT_OK(pool->pause({}));
  EXPECT_GE(pool->stats().arena_bytes, 3 * kSegment);
  EXPECT_LE(pool->stats().arena_bytes, 3 * kSegment + kMiB);
  BATON_EXPECT_OK(pool->resume({}, true));
  EXPECT_TRUE(holds(block, 3 * kSegment, 4));
  // Beyond its capacity it does not grow.
  BATON_EXPECT_OK(pool->grow_arena(UINT64_MAX));
  EXPECT_EQ(pool->stats().arena_bytes, 64 * kMiB);
}

TEST(Arena, TakesWholePages) {
  auto pool = make_pool(0);
  const MemoryFile file(3 * kMiB + 100);
  BATON_EXPECT_OK(pool->set_arena(file.fd(), 0, 3 * kMiB + 100));
  EXPECT_EQ(pool->stats().arena_bytes, 3 * kMiB);
}

TEST(Arena, GrowsWhileThePoolIsUsed) {
  auto pool = make_pool(0);
  const MemoryFile file(0);
  BATON_EXPECT_OK(pool->open_arena(file.fd(), 0, 64 * kMiB));
  const uint64_t block = allocate(*pool, 2 * kSegment);
  fill(block, 2 * kSegment, 5);
  std::thread grower([&] {
    for (int piece = 1; piece <= 64; ++piece)
      BATON_EXPECT_OK(pool->grow_arena(piece * kMiB));
  });
  for (int round = 0; round < 20; ++round) {
    BATON_EXPECT_OK(pool->pause({}));
    BATON_EXPECT_OK(pool->resume({}, round % 2 == 0));
  }
  grower.join();
  pool::ResumeReport report;
  BATON_EXPECT_OK(pool->wait(10'000, report));
  EXPECT_TRUE(holds(block, 2 * kSegment, 5));
}

// The arena outlives the process: what a pause saved is found in the memfd.
TEST(Arena, HoldsThePausedBytes) {
  auto pool = make_pool(0);
  const MemoryFile file(16 * kMiB);
  BATON_EXPECT_OK(pool->set_arena(file.fd(), 4 * kMiB, 12 * kMiB));
  const uint64_t block = allocate(*pool, kMiB);
  fill(block, kMiB, 12);
  BATON_EXPECT_OK(pool->pause({}));
  std::vector<uint8_t> found(kMiB);
  ASSERT_EQ(pread(file.fd(), found.data(), kMiB, 4 * kMiB), static_cast<ssize_t>(kMiB));
  EXPECT_EQ(found, pattern(12, kMiB));
}

}  // namespace
}  // namespace baton::test
