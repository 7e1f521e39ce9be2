// Every driver call of a pause, a resume and an allocation fails once, at each of its occurrences: nothing may have
// changed, and the same operation succeeds when it is tried again.
#include <fcntl.h>

#include "native/copy/checksum_items.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseRequest;
using pool::Pool;
using pool::RangeSet;
using pool::Stats;
using pool::Worth;

constexpr uint64_t kSegments = 3;
constexpr uint64_t kBytes = kSegments * kSegment;

bool same(const Stats& a, const Stats& b) {
  return a.segments == b.segments && a.mapped_segments == b.mapped_segments && a.live_bytes == b.live_bytes &&
         a.live_blocks == b.live_blocks && a.arena_used_bytes == b.arena_used_bytes &&
         a.pending_bytes == b.pending_bytes;
}

struct Scene {
  std::unique_ptr<Pool> pool;
  uint64_t block;
};

Scene make_scene() {
  Scene scene{make_pool(8 * kMiB), 0};
  scene.block = allocate(*scene.pool, kBytes);
  fill(scene.block, kBytes, 1);
  scene.pool->declare(Worth::kFrozen, range_of(scene.block + 1000, kSegment));
  return scene;
}

// A fault rule strikes the n-th call of a process, and calls before the operation count too. So n = 0, 1, 2 … is
// tried in one child after the other, until the operation gets through without being struck.
constexpr int kNotPrepared = 10;  // struck before the operation
constexpr int kSucceeded = 11;
constexpr int kRolledBack = 12;

// What the child expects while it prepares may well fail; nobody wants to read it.
class Silence {
 public:
  Silence() : saved_(dup(STDOUT_FILENO)) {
    const int nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO);
    close(nowhere);
  }
  ~Silence() {
    fflush(nullptr);
    dup2(saved_, STDOUT_FILENO);
    close(saved_);
  }

 private:
  int saved_;
};

// The scratch buffer of checksums is allocated by the first and kept: no part of what is rolled back.
void warm_up_checksums() {
  uint64_t sum = 0;
  const copy::ChecksumItem item{0, 0, 1, 1, 0};
  BATON_EXPECT_OK(copy::checksum_items(*take(Gpu::get(0)), {&item, 1}, true, {&sum, 1}));
}

// Runs `operation` on the scene that `prepare` made, with each call of `function` failing once.
void fails_at_every_call(const std::string& function, const std::function<void(Scene&)>& prepare,
                         const std::function<std::string(Scene&)>& operation,
                         const std::function<void(Scene&)>& check) {
  int rolled_back = 0;
  for (int n = 0; n < 200; ++n) {
    const int status = in_child(
        [&] {
          Scene scene;
          {
            const Silence silence;
            scene = make_scene();
            if (function != "cuMemAlloc") warm_up_checksums();
            prepare(scene);
          }
          if (::testing::Test::HasFailure()) _exit(kNotPrepared);
          const Stats before = scene.pool->stats();
          const uint64_t free_before = free_device_bytes();
          const std::string code = operation(scene);
          if (code == "OK") _exit(kSucceeded);
          EXPECT_NE(code, "ROLLBACK_INCOMPLETE");
          EXPECT_TRUE(same(before, scene.pool->stats())) << function << " call " << n << ": " << code;
          EXPECT_EQ(free_device_bytes(), free_before) << function << " call " << n;
          EXPECT_EQ(operation(scene), "OK") << function << " call " << n;
          check(scene);
          if (!::testing::Test::HasFailure()) _exit(kRolledBack);
        },
        function + ":after=" + std::to_string(n) + ":count=1:result=719");
    if (status == kNotPrepared || status == 128 + SIGABRT) continue;  // take() aborts
    if (status == kSucceeded) break;
    ASSERT_EQ(status, kRolledBack) << function << " call " << n;
    ++rolled_back;
  }
  EXPECT_GT(rolled_back, 0) << "no call of " << function << " was ever struck";
}

std::string pause_code(Scene& scene) {
  return code_of(scene.pool->pause({}));
}
std::string resume_code(Scene& scene) {
  return code_of(scene.pool->resume({}, true));
}
void nothing(Scene&) {}
void bytes_are_there(Scene& scene) {
  BATON_EXPECT_OK(scene.pool->resume({}, true));
  EXPECT_TRUE(holds(scene.block, kBytes, 1));
}
void paused(Scene& scene) {
  BATON_EXPECT_OK(scene.pool->pause({}));
}

std::string name_of(const ::testing::TestParamInfo<const char*>& info) {
  return info.param;
}

class PauseFails : public ::testing::TestWithParam<const char*> {};
TEST_P(PauseFails, AndNothingHasChanged) {
  fails_at_every_call(GetParam(), nothing, pause_code, bytes_are_there);
}
INSTANTIATE_TEST_SUITE_P(Rollback, PauseFails,
                         ::testing::Values("cuCtxSynchronize", "cuMemcpyDtoHAsync", "cuEventCreate", "cuEventRecord",
                                           "cuEventSynchronize", "cuLaunchKernel", "cuMemAlloc", "cuMemUnmap",
                                           "cuMemRelease"),
                         name_of);

class ResumeFails : public ::testing::TestWithParam<const char*> {};
TEST_P(ResumeFails, AndThePoolStaysPaused) {
  fails_at_every_call(GetParam(), paused, resume_code, bytes_are_there);
}
INSTANTIATE_TEST_SUITE_P(Rollback, ResumeFails,
                         ::testing::Values("cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemcpyHtoDAsync",
                                           "cuStreamSynchronize", "cuLaunchKernel"),
                         name_of);

// What does not wait for the rest is brought by a kernel.
class ReturnFails : public ::testing::TestWithParam<const char*> {};
TEST_P(ReturnFails, AndThePoolStaysPaused) {
  const auto return_at_once = [](Scene& scene) {
    return code_of(scene.pool->resume(range_of(scene.block, kBytes), false));
  };
  fails_at_every_call(GetParam(), paused, return_at_once, bytes_are_there);
}
INSTANTIATE_TEST_SUITE_P(Rollback, ReturnFails,
                         ::testing::Values("cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuStreamSynchronize",
                                           "cuLaunchKernel"),
                         name_of);

class AllocateFails : public ::testing::TestWithParam<const char*> {};
TEST_P(AllocateFails, AndNothingHasChanged) {
  fails_at_every_call(
      GetParam(), nothing, [](Scene& scene) { return code_of(scene.pool->allocate(3 * kSegment, 64)); },
      [](Scene& scene) { EXPECT_EQ(scene.pool->stats().segments, 2 * kSegments); });
}
INSTANTIATE_TEST_SUITE_P(Rollback, AllocateFails, ::testing::Values("cuMemCreate", "cuMemMap", "cuMemSetAccess"),
                         name_of);

// A second failure while the first is undone: said aloud, and still nothing is lost.
TEST(Rollback, WhatCannotBeMappedBackIsPaused) {
  EXPECT_EQ(in_child(
                [] {
                  Scene scene = make_scene();
                  EXPECT_EQ(pause_code(scene), "ROLLBACK_INCOMPLETE");
                  EXPECT_EQ(scene.pool->stats().mapped_segments, 2U);
                  EXPECT_EQ(free_device_bytes(), kDeviceBytes - 2 * kSegment - kSegment);  // and the scratch buffer
                  BATON_EXPECT_OK(scene.pool->resume({}, true));
                  EXPECT_TRUE(holds(scene.block, kBytes, 1));
                },
                // The third unmapping fails; mapping the first segment again (the 4th call, after the scene's 3) too.
                "cuMemUnmap:after=2:count=1:result=719,cuMemMap:after=3:count=1:result=719"),
            0);
}

}  // namespace
}  // namespace baton::test
