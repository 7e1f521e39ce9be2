// What a pause saves and releases, and that a resume brings it all back.
#include <set>

#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseReport;
using pool::PauseRequest;
using pool::Pool;
using pool::RangeSet;
using pool::ResumeReport;
using pool::Worth;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

PauseReport pause(Pool& pool, const PauseRequest& request = {}) {
  return take(pool.pause(request));
}
ResumeReport resume(Pool& pool) {
  return take(pool.resume({}, true));
}

TEST(Pause, BytesComeBackAtTheSameAddresses) {
  auto pool = make_pool();
  struct Block {
    uint64_t address, bytes;
  };
  std::vector<Block> blocks;
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{511}, 3 * kMiB + 7, uint64_t{70000}, 5 * kMiB, uint64_t{64}}) {
    blocks.push_back({allocate(*pool, bytes), bytes});
    fill(blocks.back().address, bytes, blocks.size());
  }
  const uint64_t free_before = free_device_bytes();
  const uint64_t mapped = pool->stats().mapped_segments * kSegment;
  for (int cycle = 0; cycle < 3; ++cycle) {
    const PauseReport paused = pause(*pool);
    EXPECT_EQ(paused.released_bytes, mapped);
    EXPECT_EQ(paused.saved_bytes, pool->stats().live_bytes);
    EXPECT_EQ(paused.dead_bytes, mapped - pool->stats().live_bytes);
    EXPECT_EQ(paused.kept_bytes, 0U);
    EXPECT_EQ(free_device_bytes(), free_before + mapped);
    EXPECT_EQ(pool->stats().mapped_segments, 0U);
    for (const Block& block : blocks)
      EXPECT_FALSE(is_readable(block.address));
    const ResumeReport resumed = resume(*pool);
    EXPECT_EQ(resumed.mapped_bytes, mapped);
    EXPECT_EQ(resumed.copied_bytes, pool->stats().live_bytes);
    EXPECT_EQ(free_device_bytes(), free_before);
    EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
    for (size_t i = 0; i < blocks.size(); ++i)
      EXPECT_TRUE(holds(blocks[i].address, blocks[i].bytes, i + 1)) << i;
  }
}

TEST(Pause, OnlyLiveRangesAreSaved) {
  auto pool = make_pool();
  const uint64_t block = allocate(*pool, 8 * kMiB);
  fill(block, 8 * kMiB, 1);
  PauseRequest request;
  // Out of order, overlapping, and one that is in no block: live is what is named and allocated.
  request.live = RangeSet({{block + 5 * kMiB, block + 5 * kMiB + 1000},
                           {block + 100, block + 200},
                           {block + 150, block + 300},
                           {block + 100 * kMiB, block + 101 * kMiB}});
  const PauseReport paused = pause(*pool, request);
  EXPECT_EQ(paused.saved_bytes, 1200U);
  EXPECT_EQ(paused.dead_bytes, 8 * kMiB - 1200);
  EXPECT_EQ(pool->stats().arena_used_bytes, 256U + 1024U);  // whole cache lines
  EXPECT_EQ(resume(*pool).copied_bytes, 1200U);
  const auto expected = pattern(1, 8 * kMiB);
  const auto found = read_bytes(block, 8 * kMiB);
  EXPECT_TRUE(std::equal(found.begin() + 100, found.begin() + 300, expected.begin() + 100));
  EXPECT_TRUE(std::equal(found.begin() + 5 * kMiB, found.begin() + 5 * kMiB + 1000, expected.begin() + 5 * kMiB));
}

TEST(Pause, SegmentWithoutBlocksGoesForGood) {
  auto pool = make_pool();
  const uint64_t a = allocate(*pool, kSegment);
  const uint64_t b = allocate(*pool, kSegment);
  BATON_EXPECT_OK(pool->free(a));
  const PauseReport paused = pause(*pool);
  EXPECT_EQ(paused.released_bytes, 2 * kSegment);
  EXPECT_EQ(paused.saved_bytes, kSegment);
  EXPECT_EQ(resume(*pool).mapped_bytes, kSegment);
  EXPECT_EQ(pool->stats().segments, 1U);
  EXPECT_TRUE(is_readable(b));
  EXPECT_FALSE(is_readable(a));
}

TEST(Pause, StraddlingBlockIsSavedOnlyWhereItsSegmentGoes) {
  auto pool = make_pool();
  const uint64_t bytes = 3 * kSegment;
  const uint64_t block = allocate(*pool, bytes);
  fill(block, bytes, 4);
  PauseRequest request;
  request.keep = range_of(block + kSegment + 10, 1);
  const PauseReport paused = pause(*pool, request);
  EXPECT_EQ(paused.released_bytes, 2 * kSegment);
  EXPECT_EQ(paused.saved_bytes, 2 * kSegment);
  EXPECT_EQ(paused.kept_bytes, kSegment);
  EXPECT_FALSE(is_readable(block));
  EXPECT_FALSE(is_readable(block + 2 * kSegment));
  // The part that stayed is in use meanwhile.
  fill(block + kSegment, kSegment, 5);
  EXPECT_EQ(resume(*pool).copied_bytes, 2 * kSegment);
  const auto expected = pattern(4, bytes);
  const auto found = read_bytes(block, bytes);
  EXPECT_TRUE(std::equal(found.begin(), found.begin() + kSegment, expected.begin()));
  EXPECT_TRUE(std::equal(found.begin() + 2 * kSegment, found.end(), expected.begin() + 2 * kSegment));
  EXPECT_TRUE(holds(block + kSegment, kSegment, 5));
}

// Five segments of different worth; the order in which they go is asked for one segment at a time.
TEST(Pause, CheapestToBringBackGoesFirst) {
  auto pool = make_pool();
  std::vector<uint64_t> blocks;
  for (int i = 0; i < 5; ++i)
    blocks.push_back(allocate(*pool, kSegment));
  for (int i = 0; i < 5; ++i)
    fill(blocks[i], kSegment, i);
  pool->declare(Worth::kDiscard, range_of(blocks[3], kSegment));      // nothing to bring back
  pool->declare(Worth::kZero, range_of(blocks[1], kSegment - 4096));  // 4 KiB
  PauseRequest request;
  request.live = RangeSet({{blocks[0], blocks[0] + 1000000},
                           {blocks[1], blocks[1] + kSegment},
                           {blocks[2], blocks[2] + 500000},
                           {blocks[3], blocks[3] + kSegment},
                           {blocks[4], blocks[4] + kSegment}});
  std::vector<uint64_t> order;
  std::vector<uint64_t> saved;
  for (int i = 0; i < 5; ++i) {
    request.want_bytes = 1 + (i % 2) * (kSegment - 1);  // any part of a segment asks for it whole
    const PauseReport paused = pause(*pool, request);
    EXPECT_EQ(paused.released_bytes, kSegment);
    saved.push_back(paused.saved_bytes);
    for (const uint64_t block : blocks) {
      if (!is_readable(block) && std::count(order.begin(), order.end(), block) == 0) order.push_back(block);
    }
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{blocks[3], blocks[1], blocks[2], blocks[0], blocks[4]}));
  EXPECT_EQ(saved, (std::vector<uint64_t>{0, 4096, 500000, 1000000, kSegment}));
  request.want_bytes = kSegment;
  EXPECT_EQ(pause(*pool, request).released_bytes, 0U);  // nothing is left to release, which is no error
  resume(*pool);
  EXPECT_TRUE(holds(blocks[4], kSegment, 4));
}

TEST(Pause, ReleasesWhatIsWantedAndNoMore) {
  auto pool = make_pool();
  for (int i = 0; i < 6; ++i)
    allocate(*pool, kSegment);
  PauseRequest request;
  request.want_bytes = 2 * kSegment + 1;
  EXPECT_EQ(pause(*pool, request).released_bytes, 3 * kSegment);
  request.want_bytes = 0;
  EXPECT_EQ(pause(*pool, request).released_bytes, 0U);
  request.want_bytes = UINT64_MAX;
  const PauseReport rest = pause(*pool, request);
  EXPECT_EQ(rest.released_bytes, 3 * kSegment);
  EXPECT_EQ(resume(*pool).mapped_bytes, 6 * kSegment);
}

TEST(Worth, ZeroRangesComeBackAsZerosAndDiscardedOnesAreNotSaved) {
  auto pool = make_pool();
  const uint64_t block = allocate(*pool, kSegment);
  fill(block, kSegment, 9);
  pool->declare(Worth::kZero, range_of(block + 1000, 5000));
  pool->declare(Worth::kDiscard, range_of(block + 8000, 10000));
  const PauseReport paused = pause(*pool);
  EXPECT_EQ(paused.saved_bytes, kSegment - 15000);
  EXPECT_EQ(paused.dead_bytes, 15000U);
  // Fill the memory that is free now with ones, so that zeros do not come for nothing.
  {
    auto other = make_pool(0);
    fill(allocate(*other, 16 * kMiB), 16 * kMiB, 77);
  }
  resume(*pool);
  const auto found = read_bytes(block, kSegment);
  EXPECT_EQ(std::vector<uint8_t>(found.begin() + 1000, found.begin() + 6000), std::vector<uint8_t>(5000, 0));
  const auto expected = pattern(9, kSegment);
  EXPECT_TRUE(std::equal(found.begin(), found.begin() + 1000, expected.begin()));
  EXPECT_TRUE(std::equal(found.begin() + 6000, found.begin() + 8000, expected.begin() + 6000));
  EXPECT_TRUE(std::equal(found.begin() + 18000, found.end(), expected.begin() + 18000));
}

TEST(Worth, WhereDeclarationsOverlapTheOneThatKeepsMoreWins) {
  auto pool = make_pool();
  const uint64_t block = allocate(*pool, kSegment);
  fill(block, kSegment, 3);
  pool->declare(Worth::kDiscard, range_of(block, kSegment));
  pool->declare(Worth::kZero, range_of(block, 3000));
  pool->declare(Worth::kFrozen, range_of(block, 2000));
  pool->declare(Worth::kSaved, range_of(block, 1000));
  EXPECT_EQ(pause(*pool).saved_bytes, 2000U);  // saved, and frozen for the first time
  resume(*pool);
  EXPECT_TRUE(holds(block, 2000, 3));
  EXPECT_EQ(read_bytes(block + 2000, 1000), std::vector<uint8_t>(1000, 0));
  const PauseReport again = pause(*pool);
  EXPECT_EQ(again.saved_bytes, 1000U);
  EXPECT_EQ(again.clean_bytes, 1000U);
  resume(*pool);
}

// Whatever takes a freed block's address must not inherit that its bytes are worth nothing.
TEST(Worth, DeclarationsEndWithTheirBlock) {
  auto pool = make_pool();
  const uint64_t block = allocate(*pool, kSegment);
  pool->declare(Worth::kZero, range_of(block, kSegment));
  BATON_EXPECT_OK(pool->free(block));
  ASSERT_EQ(allocate(*pool, kSegment), block);
  fill(block, kSegment, 6);
  EXPECT_EQ(pause(*pool).saved_bytes, kSegment);
  resume(*pool);
  EXPECT_TRUE(holds(block, kSegment, 6));
}

TEST(Discard, ReleasesEverythingAndSavesNothing) {
  auto pool = make_pool(0);  // no arena is needed
  const uint64_t block = allocate(*pool, 3 * kSegment);
  fill(block, 3 * kSegment, 2);
  pool->declare(Worth::kZero, range_of(block, 100));
  const uint64_t free_before = free_device_bytes();
  const PauseReport report = take(pool->discard());
  EXPECT_EQ(report.released_bytes, 3 * kSegment);
  EXPECT_EQ(report.saved_bytes, 0U);
  EXPECT_EQ(free_device_bytes(), free_before + 3 * kSegment);
  EXPECT_FALSE(is_readable(block));
  const ResumeReport resumed = resume(*pool);
  EXPECT_EQ(resumed.mapped_bytes, 3 * kSegment);
  EXPECT_EQ(resumed.copied_bytes, 0U);
  EXPECT_TRUE(is_readable(block + 3 * kSegment - 1));
  EXPECT_EQ(read_bytes(block, 100), std::vector<uint8_t>(100, 0));
}

TEST(Discard, OfAPausedPoolForgetsWhatWasSaved) {
  auto pool = make_pool();
  allocate(*pool, kSegment);
  pause(*pool);
  EXPECT_EQ(pool->stats().arena_used_bytes, kSegment);
  EXPECT_EQ(take(pool->discard()).released_bytes, 0U);
  EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
  EXPECT_EQ(resume(*pool).copied_bytes, 0U);
}

TEST(WhilePaused, NewBlocksGoToNewSegments) {
  auto pool = make_pool();
  const uint64_t block = allocate(*pool, kSegment / 2);
  fill(block, kSegment / 2, 1);
  pause(*pool);
  const uint64_t fresh = allocate(*pool, 1000);  // would have fitted behind the first one
  EXPECT_FALSE(fresh >= block && fresh < block + kSegment);
  fill(fresh, 1000, 2);
  resume(*pool);
  EXPECT_TRUE(holds(block, kSegment / 2, 1));
  EXPECT_TRUE(holds(fresh, 1000, 2));
  // The room in the first segment can be used again.
  const uint64_t next = allocate(*pool, kSegment / 4);
  EXPECT_TRUE(next >= block && next < block + kSegment);
}

TEST(WhilePaused, FreedBlocksDoNotComeBack) {
  auto pool = make_pool();
  const uint64_t a = allocate(*pool, 3 * kSegment);
  const uint64_t b = allocate(*pool, kSegment);
  fill(b, kSegment, 1);
  PauseRequest request;
  request.keep = range_of(a, 1);
  pause(*pool, request);
  BATON_EXPECT_OK(pool->free(a));  // partly mapped, partly not
  const uint64_t c = allocate(*pool, kSegment);
  EXPECT_EQ(c, a);  // its first segment stayed
  fill(c, kSegment, 2);
  EXPECT_EQ(resume(*pool).mapped_bytes, kSegment);
  EXPECT_TRUE(holds(b, kSegment, 1));
  EXPECT_TRUE(holds(c, kSegment, 2));
  EXPECT_EQ(pool->stats().segments, 2U);
}

TEST(Report, TimesAreMarkedAsSimulated) {
  auto pool = make_pool();
  fill(allocate(*pool, 8 * kMiB), 8 * kMiB, 1);
  const PauseReport paused = pause(*pool);
  const ResumeReport resumed = resume(*pool);
  // 8 MiB at the model's 54 GB/s.
  const auto expected = static_cast<double>(8 * kMiB) / 54e9 * 1e9;
  EXPECT_NEAR(static_cast<double>(paused.simulated_ns), expected, expected * 0.1);
  EXPECT_NEAR(static_cast<double>(resumed.simulated_ns), expected, expected * 0.1);
  EXPECT_GE(paused.total_ns, paused.copy_ns);
}

}  // namespace
}  // namespace baton::test
