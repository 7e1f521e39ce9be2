// A GPU in a process that was forked after the driver had been opened: an error of its own, whoever opened it.
#include "native/driver/cuda_driver.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

// Runs `body` in a fork of this process, as it is now, and says whether its expectations held.
void in_fork(const std::function<void()>& body) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    body();
    fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Fork, NothingThatUsesAGpuWorksInAForkOfItsUser) {
  const int status = in_child([] {
    auto pool = make_pool();
    const uint64_t block = allocate(*pool, kMiB);
    fill(block, kMiB, 5);
    const std::string parent = "process " + std::to_string(getpid());
    in_fork([&] {
      const auto gpu = Gpu::get(0);
      ASSERT_EQ(code_of(gpu), "FORKED_CUDA");
      EXPECT_NE(gpu.error().found.find(parent), std::string::npos) << gpu.error().found;
      EXPECT_NE(gpu.error().expected.find("spawn"), std::string::npos);
      EXPECT_EQ(code_of(cuda::CudaDriver::instance()), "FORKED_CUDA");
      EXPECT_EQ(code_of(pool::Pool::create({})), "FORKED_CUDA");
      // What the parent had made is no way around it.
      EXPECT_EQ(code_of(pool->allocate(8 * kSegment, 64)), "FORKED_CUDA");
      const auto pause = pool->pause({});
      ASSERT_EQ(code_of(pause), "FORKED_CUDA");
      EXPECT_NE(pause.error().found.find(parent), std::string::npos) << pause.error().found;
      EXPECT_EQ(code_of(pool->export_segment(0)), "FORKED_CUDA");
      in_fork([&] { EXPECT_EQ(code_of(Gpu::get(0)), "FORKED_CUDA"); });
    });
    EXPECT_TRUE(holds(block, kMiB, 5));
    BATON_EXPECT_OK(pool->pause({}));
    BATON_EXPECT_OK(pool->resume({}, true));
    EXPECT_TRUE(holds(block, kMiB, 5));
  });
  EXPECT_EQ(status, 0);
}

TEST(Fork, AForkOfAnotherLibrarysUserSaysSoToo) {
  const int status = in_child([] {
    const auto others = take(cuda::CudaDriver::open({}));
    in_fork([] { EXPECT_EQ(code_of(Gpu::get(0)), "FORKED_CUDA"); });
  });
  EXPECT_EQ(status, 0);
}

TEST(Fork, AForkFromBeforeMayUseIt) {
  const int status = in_child([] { in_fork([] { BATON_EXPECT_OK(Gpu::get(0)); }); });
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace baton::test
