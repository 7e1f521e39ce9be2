// Faults by rule. Each case is a child, because rules are read once a process.
#include <chrono>

#include "native/test/fakegpu_support.h"

namespace baton::test {
namespace {

const auto* const table = ::testing::AddGlobalTestEnvironment(new StandinTable);

Ended with_faults(const std::string& rules, const std::function<void()>& body,
                  std::map<std::string, std::string> settings = {}) {
  settings["BATON_STANDIN_FAULTS"] = rules;
  return run(settings, body);
}

// The results of so many cuMemCreate in a row, each released at once.
std::vector<int> creations(const Client& client, int device, int count) {
  std::vector<int> results;
  for (int i = 0; i < count; ++i) {
    cuda::AllocationHandle handle = 0;
    results.push_back(client.create(device, kPiece, &handle));
    if (results.back() == cuda::kSuccess) client.cuda.cuMemRelease.raw(handle);
  }
  return results;
}

using Results = std::vector<int>;

TEST(Faults, WithoutRulesNothingFails) {
  const Ended ended = with_faults("", [] { EXPECT_EQ(creations(Client(), 0, 3), Results(3, 0)); });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, BeginAfterSoManyCallsAndLast) {
  const Ended ended = with_faults("cuMemCreate:after=2:result=2", [] {
    const Client client;
    EXPECT_EQ(creations(client, 0, 5), (Results{0, 0, 2, 2, 2}));
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, EndAfterTheirCount) {
  const Ended ended = with_faults("cuMemCreate:after=1:count=2:result=999", [] {
    const Client client;
    EXPECT_EQ(creations(client, 0, 5), (Results{0, 999, 999, 0, 0}));
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, OfOneDeviceLeaveTheOthersAlone) {
  const Ended ended = with_faults("cuMemCreate:device=1:result=2,cuMemGetInfo:device=1:result=999", [] {
    Client client;
    EXPECT_EQ(creations(client, 0, 2), (Results{0, 0}));
    EXPECT_EQ(creations(client, 1, 2), (Results{2, 2}));
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    client.use(0);
    EXPECT_EQ(client.cuda.cuMemGetInfo.raw(&free_bytes, &total_bytes), cuda::kSuccess);
    client.use(1);
    EXPECT_EQ(client.cuda.cuMemGetInfo.raw(&free_bytes, &total_bytes), cuda::kUnknown);
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, OfOneRoleOrPidLeaveOthersAlone) {
  const auto body = [](int expected) { return [=] { EXPECT_EQ(creations(Client(), 0, 1), Results{expected}); }; };
  const std::map<std::string, std::string> rank{{"BATON_STANDIN_ROLE", "rank-1"}};
  EXPECT_EQ(with_faults("cuMemCreate:role=rank-1:result=2", body(2), rank).status, 0);
  EXPECT_EQ(with_faults("cuMemCreate:role=rank-2:result=2", body(0), rank).status, 0);
  EXPECT_EQ(with_faults("cuMemCreate:role=rank-1:result=2", body(0)).status, 0);
  EXPECT_EQ(with_faults("cuMemCreate:pid=1:result=2", body(0)).status, 0);
}

TEST(Faults, AFailedCallHasDoneNothing) {
  const Ended ended = with_faults("cuMemMap:count=1:result=205,cuMemCreate:after=1:result=2", [] {
    const Client client;
    cuda::AllocationHandle handle = 0;
    ASSERT_EQ(client.create(0, kPiece, &handle), cuda::kSuccess);
    const uint64_t address = client.reserve(kPiece);
    EXPECT_EQ(client.cuda.cuMemMap.raw(address, kPiece, 0, handle, 0), cuda::kMapFailed);
    EXPECT_EQ(client.cuda.cuMemUnmap.raw(address, kPiece), cuda::kInvalidValue) << "nothing was mapped";
    EXPECT_EQ(client.cuda.cuMemMap.raw(address, kPiece, 0, handle, 0), cuda::kSuccess);
    EXPECT_EQ(client.create(0, kPiece, &handle), cuda::kOutOfMemory);
    const auto nvml = take(nvml::Nvml::open(kNvmlLibrary));
    EXPECT_EQ(used_bytes(*nvml, 0), kPiece) << "the refused one was not counted";
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, CanDelayACall) {
  const Ended ended = with_faults("cuMemCreate:count=1:delay_ms=150", [] {
    const Client client;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(creations(client, 0, 1), Results{0});
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(150));
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, CanKillTheProcessInACall) {
  const Ended ended = with_faults("cuMemCreate:after=1:signal=9", [] {
    const Client client;
    EXPECT_EQ(creations(client, 0, 1), Results{0});
    creations(client, 0, 1);
  });
  EXPECT_EQ(ended.status, 128 + SIGKILL);
}

TEST(Faults, WorkInNvmlToo) {
  const Ended ended = with_faults("nvmlDeviceGetMemoryInfo:device=1:after=1:result=15", [] {
    const auto nvml = take(nvml::Nvml::open(kNvmlLibrary));
    EXPECT_TRUE(nvml->memory(0).ok());
    EXPECT_TRUE(nvml->memory(1).ok());
    EXPECT_TRUE(nvml->memory(0).ok());
    const auto lost = nvml->memory(1);
    ASSERT_FALSE(lost.ok());
    EXPECT_EQ(lost.error().code, "NVML_CALL_FAILED");
    EXPECT_EQ(lost.error().driver_result, nvml::kGpuIsLost);
    EXPECT_NE(lost.error().message.find("NVML_ERROR_GPU_IS_LOST"), std::string::npos);
  });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

TEST(Faults, BadRulesAreSaidAndStopTheDriver) {
  const std::map<std::string, std::string> bad{
      {"cuMemCreat:result=2", "no function \"cuMemCreat\""},
      {"cuMemCreate", "one of result, delay_ms and signal is needed"},
      {"cuMemCreate:after=x:result=2", "\"after=x\" is not understood"},
      {"cuMemCreate:result=0", "\"result=0\" is not understood"},
      {"cuMemCreate:result=2:colour=red", "\"colour=red\" is not understood"},
      {"cuMemCreate:result=2,:result=2", "no function \"\""},
      {"cuMemCreate:signal=900", "\"signal=900\" is not understood"},
      {"cuMemCreate:after=-1:result=2", "\"after=-1\" is not understood"},
  };
  for (const auto& [rules, complaint] : bad) {
    const Ended ended = with_faults(rules, [] {
      const auto opened = cuda::CudaDriver::open(kCudaLibrary);
      ASSERT_FALSE(opened.ok());
      EXPECT_EQ(opened.error().code, "DRIVER_INIT_FAILED");
    });
    EXPECT_EQ(ended.status, 0) << rules << ": " << ended.stderr_text;
    EXPECT_NE(ended.stderr_text.find(complaint), std::string::npos) << rules << ": " << ended.stderr_text;
  }
  const Ended nvml_name = with_faults("nvmlDeviceGetMemory:result=2", [] {
    EXPECT_TRUE(cuda::CudaDriver::open(kCudaLibrary).ok()) << "names of NVML are NVML's to check";
    EXPECT_FALSE(nvml::Nvml::open(kNvmlLibrary).ok());
  });
  EXPECT_EQ(nvml_name.status, 0) << nvml_name.stderr_text;
}

TEST(Faults, EveryFunctionOfTheDriverCanBeNamed) {
  // All that Baton's tables know, so that no rule for one of them is refused.
  std::string rules;
#define BATON_CUDA_FUNCTION(member, names, arguments) rules += "," #member ":after=1000000:result=1";
#include "native/driver/cuda_functions.inc"
#undef BATON_CUDA_FUNCTION
  const Ended ended = with_faults(rules.substr(1), [] { EXPECT_EQ(creations(Client(), 0, 1), Results{0}); });
  EXPECT_EQ(ended.status, 0) << ended.stderr_text;
}

}  // namespace
}  // namespace baton::test
