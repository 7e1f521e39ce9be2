// The background part of a resume: what is there when, and what else may happen meanwhile.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::Pool;
using pool::RangeSet;
using pool::ResumeReport;

// Each copy to the device waits, so that a resume is under way for long enough to look at it.
constexpr char kSlowCopies[] = "cuMemcpyHtoDAsync:delay_ms=60";

// Tests run in children, because the settings of the stand-in are a process's.
int with_slow_copies(const std::function<void()>& body) {
  return in_child(body, kSlowCopies);
}

TEST(BackgroundResume, FirstIsThereAtOnceAndTheRestFollowsInOrder) {
  EXPECT_EQ(with_slow_copies([] {
              auto pool = make_pool();
              std::vector<uint64_t> blocks;
              for (int i = 0; i < 5; ++i) {
                blocks.push_back(allocate(*pool, kSegment));
                fill(blocks.back(), kSegment, i);
              }
              BATON_EXPECT_OK(pool->pause({}));
              const ResumeReport begun = take(pool->resume(range_of(blocks[2] + 5, 1), false));
              EXPECT_EQ(begun.mapped_bytes, kSegment);
              EXPECT_EQ(begun.pending_bytes, 4 * kSegment);
              EXPECT_TRUE(is_readable(blocks[2]));
              EXPECT_FALSE(is_readable(blocks[4]));
              EXPECT_TRUE(holds(blocks[2], kSegment, 2));

              ResumeReport report;
              EXPECT_EQ(code_of(pool->wait(0, report)), "DEADLINE");
              EXPECT_GT(report.pending_bytes, 0U);
              EXPECT_GT(pool->stats().pending_bytes, 0U);
              // Whatever is readable has all its bytes, and a later segment never comes before an earlier one.
              while (!is_readable(blocks[4])) {
                const std::vector<uint64_t> order = {blocks[0], blocks[1], blocks[3], blocks[4]};
                for (size_t i = order.size() - 1; i > 0; --i) {
                  EXPECT_TRUE(!is_readable(order[i]) || is_readable(order[i - 1]));
                }
                EXPECT_TRUE(!is_readable(blocks[0]) || holds(blocks[0], kSegment, 0));
              }
              BATON_EXPECT_OK(pool->wait(5000, report));
              EXPECT_EQ(report.pending_bytes, 0U);
              EXPECT_EQ(report.mapped_bytes, 5 * kSegment);
              EXPECT_EQ(report.copied_bytes, 5 * kSegment);
              EXPECT_EQ(pool->stats().pending_bytes, 0U);
              for (int i = 0; i < 5; ++i)
                EXPECT_TRUE(holds(blocks[i], kSegment, i));
              EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
            }),
            0);
}

// Copy engines are slow just after an engine gave its memory back.
void returns_first(const std::string& faults, const std::string& code) {
  EXPECT_EQ(in_child(
                [&] {
                  auto pool = make_pool();
                  const uint64_t block = allocate(*pool, 2 * kSegment);
                  fill(block, 2 * kSegment, 1);
                  BATON_EXPECT_OK(pool->pause({}));
                  EXPECT_EQ(code_of(pool->resume(range_of(block, 2 * kSegment), false)), code);
                  if (code == "OK") {
                    EXPECT_TRUE(holds(block, 2 * kSegment, 1));
                  }
                },
                faults),
            0);
}

TEST(BackgroundResume, WhatComesFirstIsBroughtByAKernel) {
  returns_first("cuMemcpyHtoDAsync:result=719", "OK");
  returns_first("cuLaunchKernel:result=719", "CUDA_CALL_FAILED");
}

TEST(BackgroundResume, WhereKernelsCannotReadTheHostACopyEngineBringsIt) {
  returns_first("cuMemHostGetDevicePointer:result=801,cuLaunchKernel:result=719", "OK");
  returns_first("cuModuleLoadData:result=218", "OK");
}

TEST(BackgroundResume, AReaderThatIsTooEarlyDiesOfSigsegv) {
  EXPECT_EQ(with_slow_copies([] {
              auto pool = make_pool();
              const uint64_t block = allocate(*pool, 8 * kSegment);
              BATON_EXPECT_OK(pool->pause({}));
              BATON_EXPECT_OK(pool->resume({}, false));
              signal(SIGSEGV, SIG_DFL);
              *reinterpret_cast<volatile uint8_t*>(block + 8 * kSegment - 1);
            }),
            128 + SIGSEGV);
}

TEST(BackgroundResume, AReaderOfAPausedPoolDiesOfSigsegv) {
  EXPECT_EQ(in_child([] {
              auto pool = make_pool();
              const uint64_t block = allocate(*pool, kSegment);
              BATON_EXPECT_OK(pool->pause({}));
              signal(SIGSEGV, SIG_DFL);
              *reinterpret_cast<volatile uint8_t*>(block);
            }),
            128 + SIGSEGV);
}

TEST(BackgroundResume, WaitEndsAtItsDeadline) {
  EXPECT_EQ(with_slow_copies([] {
              auto pool = make_pool();
              allocate(*pool, 10 * kSegment);
              BATON_EXPECT_OK(pool->pause({}));
              BATON_EXPECT_OK(pool->resume({}, false));
              const auto begin = std::chrono::steady_clock::now();
              ResumeReport report;
              EXPECT_EQ(code_of(pool->wait(100, report)), "DEADLINE");
              const auto waited = std::chrono::steady_clock::now() - begin;
              EXPECT_GE(waited, std::chrono::milliseconds(100));
              EXPECT_LT(waited, std::chrono::milliseconds(400));
            }),
            0);
}

TEST(BackgroundResume, APauseMeanwhileLosesNothing) {
  EXPECT_EQ(with_slow_copies([] {
              auto pool = make_pool();
              const uint64_t block = allocate(*pool, 4 * kSegment);
              fill(block, 4 * kSegment, 1);
              for (int cycle = 0; cycle < 3; ++cycle) {
                BATON_EXPECT_OK(pool->pause({}));
                BATON_EXPECT_OK(pool->resume({}, false));
              }
              BATON_EXPECT_OK(pool->resume({}, true));
              EXPECT_TRUE(holds(block, 4 * kSegment, 1));
            }),
            0);
}

TEST(BackgroundResume, DestroyingThePoolDoesNotWaitForTheRest) {
  EXPECT_EQ(with_slow_copies([] {
              const uint64_t free_before = free_device_bytes();
              auto pool = make_pool();
              allocate(*pool, 30 * kSegment);
              BATON_EXPECT_OK(pool->pause({}));
              BATON_EXPECT_OK(pool->resume({}, false));
              const auto begin = std::chrono::steady_clock::now();
              pool.reset();
              EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(600));
              EXPECT_EQ(free_device_bytes(), free_before);
            }),
            0);
}

TEST(BackgroundResume, AFailureIsToldByWaitAndTheRestStaysPaused) {
  EXPECT_EQ(in_child(
                [] {
                  auto pool = make_pool();
                  const uint64_t block = allocate(*pool, 4 * kSegment);
                  fill(block, 4 * kSegment, 1);
                  BATON_EXPECT_OK(pool->pause({}));
                  BATON_EXPECT_OK(pool->resume({}, false));
                  ResumeReport report;
                  EXPECT_NE(code_of(pool->wait(5000, report)), "OK");
                  EXPECT_EQ(report.pending_bytes, 2 * kSegment);
                  EXPECT_EQ(pool->stats().mapped_segments, 2U);
                  EXPECT_EQ(pool->stats().pending_bytes, 0U);
                  EXPECT_EQ(free_device_bytes(), kDeviceBytes - 2 * kSegment);
                  BATON_EXPECT_OK(pool->resume({}, true));
                  EXPECT_TRUE(holds(block, 4 * kSegment, 1));
                  BATON_EXPECT_OK(pool->wait(0, report));
                },
                "cuMemcpyHtoDAsync:after=2:count=1:result=719"),
            0);
}

// What else threads do while segments come back, in any order; nothing is lost, and no lock is held for long.
TEST(BackgroundResume, OtherThreadsAllocateFreeAndPauseMeanwhile) {
  EXPECT_EQ(in_child([] {
              auto pool = make_pool();
              const uint64_t kept = allocate(*pool, 6 * kSegment + 100);
              fill(kept, 6 * kSegment + 100, 1);
              std::atomic<bool> stop = false;
              std::vector<std::thread> threads;
              for (int t = 0; t < 3; ++t) {
                threads.emplace_back([&pool, &stop, t] {
                  std::mt19937_64 random(t);
                  std::vector<uint64_t> blocks;
                  while (!stop) {
                    if (blocks.size() < 20 && random() % 2 == 0) {
                      blocks.push_back(allocate(*pool, 1 + random() % (kSegment / 4)));
                      EXPECT_TRUE(pool->owns(blocks.back()));
                    } else if (!blocks.empty()) {
                      BATON_EXPECT_OK(pool->free(blocks.back()));
                      blocks.pop_back();
                    }
                    std::this_thread::sleep_for(std::chrono::microseconds(50));  // std::mutex is not fair
                    if (random() % 64 == 0) static_cast<void>(pool->stats());
                    if (random() % 64 == 0) BATON_EXPECT_OK(pool->trim());
                  }
                  for (const uint64_t block : blocks)
                    BATON_EXPECT_OK(pool->free(block));
                });
              }
              for (int cycle = 0; cycle < 40; ++cycle) {
                BATON_EXPECT_OK(pool->pause({}));
                BATON_EXPECT_OK(pool->resume(range_of(kept, 1), false));
                ResumeReport report;
                if (cycle % 3 == 0) BATON_EXPECT_OK(pool->wait(20000, report));
              }
              stop = true;
              for (std::thread& thread : threads)
                thread.join();
              BATON_EXPECT_OK(pool->resume({}, true));
              EXPECT_TRUE(holds(kept, 6 * kSegment + 100, 1));
              EXPECT_EQ(pool->stats().live_blocks, 1U);
              EXPECT_EQ(pool->stats().arena_used_bytes, 0U);
            }),
            0);
}

}  // namespace
}  // namespace baton::test
