// The sampler thread against the stand-in NVML.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <string>
#include <thread>

#include "native/monitor/sampler.h"

namespace baton::monitor {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kDeviceBytes = uint64_t{1} << 30;

class SamplerTest : public testing::Test {
 protected:
  void SetUp() override {
    table_ = "/dev/shm/baton-sampler-test-" + std::to_string(::getpid());
    ::setenv("BATON_STANDIN_TABLE", table_.c_str(), 1);
    ::setenv("BATON_STANDIN_DEVICES", "3", 1);
    ::setenv("BATON_STANDIN_BYTES", std::to_string(kDeviceBytes).c_str(), 1);
    auto opened = nvml::Nvml::open(std::string(BATON_BUILD_FOLDER) + "/standin/libnvidia-ml.so.1");
    ASSERT_TRUE(opened) << opened.error().message << " " << opened.error().found;
    nvml_ = *std::move(opened);
  }
  void TearDown() override { ::unlink(table_.c_str()); }

  std::string table_;
  std::shared_ptr<const nvml::Nvml> nvml_;
};

TEST_F(SamplerTest, HasASampleAtOnceAndGoesOn) {
  Sampler sampler(nvml_, {.hz = 500, .process_hz = 20, .capacity = 1000});
  const Snapshot first = sampler.latest();
  ASSERT_EQ(first.devices.size(), 3U);
  ASSERT_TRUE(first.devices[0]);
  EXPECT_EQ(first.devices[0]->total_bytes, kDeviceBytes);
  std::this_thread::sleep_for(milliseconds(300));
  const Snapshot later = sampler.latest();
  EXPECT_GT(later.time_ns, first.time_ns);
  ASSERT_TRUE(later.processes[2]);
  ASSERT_TRUE(sampler.peaks()[1]);
  sampler.stop();
  const Cost cost = sampler.cost();
  EXPECT_GT(cost.samples, 10U);
  EXPECT_GT(cost.cpu_ns, 0U);
  EXPECT_LT(cost.cpu_ns, cost.wall_ns);
  // It has stopped.
  const uint64_t last = sampler.latest().time_ns;
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(sampler.latest().time_ns, last);
}

TEST_F(SamplerTest, DrainGivesEachSampleOnceAndCountsWhatWasLost) {
  Sampler sampler(nvml_, {.hz = 1000, .process_hz = 0, .capacity = 16});
  std::this_thread::sleep_for(milliseconds(200));
  sampler.stop();
  const Series series = sampler.drain();
  EXPECT_EQ(series.times_ns.size(), 16U);
  EXPECT_EQ(series.used_bytes.size(), 16U * 3U);
  EXPECT_EQ(series.times_ns.size() + series.dropped, sampler.cost().samples);
  for (size_t i = 1; i < series.times_ns.size(); ++i)
    EXPECT_GT(series.times_ns[i], series.times_ns[i - 1]);
  for (const double used : series.used_bytes)
    EXPECT_FALSE(std::isnan(used));
  EXPECT_EQ(series.times_ns.back(), sampler.latest().time_ns);
  EXPECT_TRUE(sampler.drain().times_ns.empty());
}

TEST_F(SamplerTest, ManyReadersAtOnce) {
  Sampler sampler(nvml_, {.hz = 1000, .process_hz = 100, .capacity = 64});
  std::vector<std::thread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&sampler, i] {
      const auto until = std::chrono::steady_clock::now() + milliseconds(200);
      while (std::chrono::steady_clock::now() < until) {
        sampler.latest();
        sampler.peaks();
        sampler.cost();
        if (i == 0) sampler.drain();
        if (i == 1) sampler.reset_peaks();
        std::this_thread::yield();
      }
    });
  }
  for (std::thread& reader : readers)
    reader.join();
}

TEST_F(SamplerTest, StopsAtOnceHoweverSlowItsRate) {
  Sampler sampler(nvml_, {.hz = 1, .process_hz = 0, .capacity = 4});
  const auto before = std::chrono::steady_clock::now();
  sampler.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - before, milliseconds(150));
}

}  // namespace
}  // namespace baton::monitor
