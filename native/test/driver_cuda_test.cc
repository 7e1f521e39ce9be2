// The table of libcuda: what is there is called, what is not is an error that says so.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "native/driver/cuda_driver.h"
#include "native/test/driver_support.h"

namespace baton::test {
namespace {

using cuda::CudaDriver;

// A driver of its own version with one GPU, and without most functions.
const std::string kSmallDriver = R"(
extern "C" int cuInit(unsigned flags) { return 0; }
extern "C" int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
extern "C" int cuDeviceGetCount(int* count) { *count = 1; return 0; }
)";

TEST(CudaTable, AMissingLibraryIsNamedWithTheLoadersReason) {
  const auto opened = CudaDriver::open("/nowhere/libcuda.so.1");
  ASSERT_FALSE(opened.ok());
  const Error& error = opened.error();
  EXPECT_EQ(error.code, "DRIVER_NOT_FOUND");
  EXPECT_NE(error.expected.find("/nowhere/libcuda.so.1"), std::string::npos);
  EXPECT_NE(error.found.find("No such file"), std::string::npos) << error.found;
  EXPECT_NE(error.action.find("BATON_CUDA_LIBRARY"), std::string::npos);
}

TEST(CudaTable, EnvironmentNamesTheLibraryWhenTheCallerDoesNot) {
  const MadeLibrary library(kSmallDriver);
  setenv("BATON_CUDA_LIBRARY", library.path().c_str(), 1);
  const auto opened = CudaDriver::open({});
  unsetenv("BATON_CUDA_LIBRARY");
  ASSERT_TRUE(opened.ok()) << to_json(opened.error());
  EXPECT_EQ((*opened)->path(), library.path());
  EXPECT_EQ((*opened)->driver_version(), 12040);
  EXPECT_EQ((*opened)->device_count(), 1);
  EXPECT_FALSE((*opened)->simulated());
  EXPECT_EQ((*opened)->simulated_ns(nullptr), UINT64_MAX) << "unknown on a real GPU";
}

TEST(CudaTable, AMissingFunctionIsAnErrorOfItsCallOnly) {
  const MadeLibrary library(kSmallDriver);
  const auto opened = CudaDriver::open(library.path());
  ASSERT_TRUE(opened.ok()) << to_json(opened.error());
  const CudaDriver& driver = **opened;
  EXPECT_FALSE(driver.cuMemCreate);
  cuda::AllocationHandle handle = 0;
  const Status status = driver.cuMemCreate(&handle, 1, nullptr, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, "DRIVER_SYMBOL_MISSING");
  EXPECT_EQ(status.error().expected, "cuMemCreate");
  EXPECT_NE(status.error().found.find(library.path()), std::string::npos);
  EXPECT_NE(status.error().found.find("12040"), std::string::npos) << "the driver's version";
  EXPECT_FALSE(driver.cuMemCreate.available().ok());
  EXPECT_TRUE(driver.cuInit.available().ok());
}

TEST(CudaTable, WithoutCuInitThereIsNoDriver) {
  const MadeLibrary library("extern \"C\" int cuDriverGetVersion(int* v) { *v = 11000; return 0; }");
  const auto opened = CudaDriver::open(library.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, "DRIVER_SYMBOL_MISSING");
  EXPECT_EQ(opened.error().expected, "cuInit");
}

TEST(CudaTable, TheNewestVersionIsTakenAndAnOlderOneOnlyWhereItIsTheSame) {
  const MadeLibrary both(kSmallDriver + R"(
extern "C" int cuDevicePrimaryCtxRelease(int device) { return 801; }
extern "C" int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
extern "C" int cuMemGetInfo(unsigned* free_bytes, unsigned* total) { *free_bytes = *total = 1; return 0; }
)");
  const auto opened = CudaDriver::open(both.path());
  ASSERT_TRUE(opened.ok());
  EXPECT_STREQ((*opened)->cuDevicePrimaryCtxRelease.found(), "cuDevicePrimaryCtxRelease_v2");
  EXPECT_TRUE((*opened)->cuDevicePrimaryCtxRelease(0).ok());
  // Of 32-bit days: taking it would write half of each number.
  EXPECT_FALSE((*opened)->cuMemGetInfo);

  const MadeLibrary old(kSmallDriver + "extern \"C\" int cuDevicePrimaryCtxRelease(int device) { return 0; }");
  const auto opened_old = CudaDriver::open(old.path());
  ASSERT_TRUE(opened_old.ok());
  EXPECT_STREQ((*opened_old)->cuDevicePrimaryCtxRelease.found(), "cuDevicePrimaryCtxRelease");
}

TEST(CudaTable, AFailedInitialisationSaysWhatTheDriverSaid) {
  const MadeLibrary library(R"(
extern "C" int cuInit(unsigned flags) { return 100; }
extern "C" int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
)");
  const auto opened = CudaDriver::open(library.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, "DRIVER_INIT_FAILED");
  EXPECT_EQ(opened.error().driver_result, cuda::kNoDevice);
  EXPECT_NE(opened.error().message.find("CUDA_ERROR_NO_DEVICE"), std::string::npos);
}

TEST(CudaTable, AFailedCallCarriesItsResult) {
  const MadeLibrary library(kSmallDriver + R"(
extern "C" int cuMemRelease(unsigned long long handle) { return handle; }
)");
  const auto opened = CudaDriver::open(library.path());
  ASSERT_TRUE(opened.ok());
  const auto& release = (*opened)->cuMemRelease;
  EXPECT_TRUE(release(0).ok());
  const Status memory = release(2);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code, "CUDA_OUT_OF_MEMORY");
  const Status unknown = release(77777);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, "CUDA_CALL_FAILED");
  EXPECT_EQ(unknown.error().driver_result, 77777);
  EXPECT_EQ(unknown.error().message, "cuMemRelease failed with CUDA_ERROR_77777.");
}

TEST(CudaTable, InstanceIsOneForAllThreads) {
  const MadeLibrary library(kSmallDriver);
  setenv("BATON_CUDA_LIBRARY", library.path().c_str(), 1);
  std::vector<const CudaDriver*> seen(8);
  std::vector<std::thread> threads;
  for (auto& place : seen) {
    threads.emplace_back([&place] {
      const auto instance = CudaDriver::instance();
      if (instance.ok()) place = *instance;
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  unsetenv("BATON_CUDA_LIBRARY");
  ASSERT_NE(seen[0], nullptr);
  for (const CudaDriver* driver : seen)
    EXPECT_EQ(driver, seen[0]);
}

// As a driver lays them out in memory; the headers pin sizes, this the bytes.
TEST(CudaTable, StructuresHaveTheDriversLayout) {
  cuda::AllocationProperties properties{};
  properties.type = cuda::kAllocationTypePinned;
  properties.requested_handle_types = cuda::kHandlePosixFileDescriptor;
  properties.location = {cuda::kLocationDevice, 7};
  properties.flags.usage = 0x0102;
  const unsigned char expected[32] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0,
                                      0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0};
  EXPECT_EQ(std::memcmp(&properties, expected, sizeof(expected)), 0);
  const cuda::AccessDescriptor access{{cuda::kLocationDevice, 3}, cuda::kAccessReadWrite};
  const unsigned char expected_access[12] = {1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0};
  EXPECT_EQ(std::memcmp(&access, expected_access, sizeof(expected_access)), 0);
}

}  // namespace
}  // namespace baton::test
