// Segments that a resume leaves away: what is needed in one phase only takes no room in the others.
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseReport;
using pool::PauseRequest;
using pool::RangeSet;
using pool::ResumeReport;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

PauseReport pause(pool::Pool& pool, const PauseRequest& request = {}) {
  return take(pool.pause(request));
}
ResumeReport resume(pool::Pool& pool) {
  return take(pool.resume({}, true));
}
ResumeReport resume_without(pool::Pool& pool, const RangeSet& leave, bool wait = true) {
  return take(pool.resume({}, wait, leave));
}

TEST(Leave, StaysAwayUntilALaterResume) {
  auto pool = make_pool();
  const uint64_t state = allocate(*pool, 2 * kSegment);
  const uint64_t reference = allocate(*pool, 3 * kSegment);
  fill(state, 2 * kSegment, 1);
  fill(reference, 3 * kSegment, 2);
  const RangeSet leave = range_of(reference, 3 * kSegment);
  pause(*pool);
  EXPECT_EQ(resume_without(*pool, leave).mapped_bytes, 2 * kSegment);
  EXPECT_TRUE(holds(state, 2 * kSegment, 1));
  EXPECT_EQ(pool->stats().mapped_segments, 2U);

  // The next handoffs release and bring back the rest as ever.
  fill(state, 2 * kSegment, 3);
  EXPECT_EQ(pause(*pool).released_bytes, 2 * kSegment);
  EXPECT_EQ(resume_without(*pool, leave, false).pending_bytes, 2 * kSegment);
  ResumeReport report;
  BATON_EXPECT_OK(pool->wait(10'000, report));
  EXPECT_TRUE(holds(state, 2 * kSegment, 3));

  EXPECT_EQ(resume(*pool).mapped_bytes, 3 * kSegment);
  EXPECT_TRUE(holds(reference, 3 * kSegment, 2));
}

TEST(Leave, ASegmentThatHoldsAnythingElseComesBack) {
  auto pool = make_pool();
  const uint64_t reference = allocate(*pool, kSegment + kSegment / 2);
  const uint64_t state = allocate(*pool, kSegment / 2);  // behind it, in its second segment
  fill(reference, kSegment + kSegment / 2, 1);
  fill(state, kSegment / 2, 2);
  pause(*pool);
  EXPECT_EQ(resume_without(*pool, range_of(reference, kSegment + kSegment / 2)).mapped_bytes, kSegment);
  EXPECT_TRUE(holds(state, kSegment / 2, 2));
  resume(*pool);
  EXPECT_TRUE(holds(reference, kSegment + kSegment / 2, 1));
}

TEST(Leave, WhatIsWorthNothingIsStillUsed) {
  auto pool = make_pool();
  const uint64_t bucket = allocate(*pool, kSegment);
  const uint64_t reference = allocate(*pool, kSegment);
  pool->declare(pool::Worth::kDiscard, range_of(bucket, kSegment));
  pause(*pool);
  EXPECT_EQ(resume_without(*pool, range_of(reference, kSegment)).mapped_bytes, kSegment);
  fill(bucket, kSegment, 1);  // a fault if it had stayed away
}

TEST(Leave, ASegmentThatNobodyUsedComesBack) {
  auto pool = make_pool();
  const uint64_t cached = allocate(*pool, kSegment);  // PyTorch keeps it as free memory
  PauseRequest request;
  request.live = RangeSet();
  pause(*pool, request);
  EXPECT_EQ(resume_without(*pool, range_of(cached, kSegment)).mapped_bytes, kSegment);
  fill(cached, kSegment, 1);
}

TEST(Leave, FrozenContentsAreSavedOnce) {
  auto pool = make_pool();
  const uint64_t reference = allocate(*pool, 2 * kSegment);
  const RangeSet leave = range_of(reference, 2 * kSegment);
  fill(reference, 2 * kSegment, 1);
  pool->declare(pool::Worth::kFrozen, leave);
  EXPECT_EQ(pause(*pool).saved_bytes, 2 * kSegment);
  for (int round = 0; round < 3; ++round) {
    resume(*pool);
    EXPECT_TRUE(holds(reference, 2 * kSegment, 1));
    const PauseReport paused = pause(*pool);
    EXPECT_EQ(paused.saved_bytes, 0U);
    EXPECT_EQ(paused.clean_bytes, 2 * kSegment);
    EXPECT_EQ(resume_without(*pool, leave).mapped_bytes, 0U);
  }
}

}  // namespace
}  // namespace baton::test
