// baton-probe, run as doctor runs it: what it says of stand-ins that work, and of some that do not.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace baton::test {
namespace {

struct Ended {
  int status = 0;  // exit status, or 128 + the signal
  std::string said;
};

Ended run_probe(const std::string& words, const std::string& faults = "") {
  const std::string folder = std::string(BATON_BUILD_FOLDER);
  const std::string table = "/dev/shm/baton-test-probe-" + std::to_string(getpid());
  const std::string command = "exec env BATON_CUDA_LIBRARY=" + folder +
                              "/standin/libcuda.so.1 BATON_NVML_LIBRARY=" + folder +
                              "/standin/libnvidia-ml.so.1 BATON_STANDIN_TABLE=" + table +
                              " BATON_STANDIN_DEVICES=2 BATON_STANDIN_BYTES=67108864 BATON_STANDIN_FAULTS=" + faults +
                              " " + folder + "/baton-probe " + words;
  Ended ended;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) std::abort();
  std::array<char, 4096> part{};
  while (fgets(part.data(), part.size(), pipe) != nullptr)
    ended.said += part.data();
  const int status = pclose(pipe);
  ended.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  unlink(table.c_str());
  return ended;
}

bool contains(const Ended& ended, const std::string& text) {
  return ended.said.find(text) != std::string::npos;
}

TEST(Probe, PassesMemoryOfEveryGpuToAnotherProcess) {
  const Ended ended = run_probe("cuda 1048576");
  EXPECT_EQ(ended.status, 0) << ended.said;
  for (const std::string pair : {R"("from": 0, "to": 0)", R"("from": 0, "to": 1)", R"("from": 1, "to": 0)"}) {
    EXPECT_TRUE(contains(ended, "{\"roundTrip\": {" + pair + ", \"bytes\": 2097152, \"stage\": \"release\"}}"))
        << pair << "\n"
        << ended.said;
  }
  EXPECT_TRUE(contains(ended, R"({"done": true})"));
}

// The step that fails is named, and what was made before it is let go: the next GPU's trial is the same again.
TEST(Probe, NamesTheStepThatFails) {
  const std::array<std::pair<const char*, const char*>, 6> cases{{{"cuMemCreate:result=2", "create"},
                                                                  {"cuMemMap:result=1", "map"},
                                                                  {"cuMemcpyHtoD:result=700", "write"},
                                                                  {"cuMemExportToShareableHandle:result=801", "export"},
                                                                  {"cuMemSetAccess:result=1", "map"},
                                                                  {"cuMemcpyDtoH:result=700", "import"}}};
  for (const auto& [fault, stage] : cases) {
    const Ended ended = run_probe("cuda 1048576", fault);
    EXPECT_EQ(ended.status, 0) << ended.said;
    EXPECT_TRUE(contains(ended, std::string(R"("stage": ")") + stage + R"(", "error")")) << fault << "\n" << ended.said;
    EXPECT_TRUE(contains(ended, R"({"done": true})")) << fault;
  }
}

TEST(Probe, SaysWhereItWasWhenTheDriverCrashed) {
  const Ended ended = run_probe("nvml", "nvmlDeviceGetMemoryInfo:signal=9");
  EXPECT_EQ(ended.status, 128 + 9);
  EXPECT_TRUE(ended.said.ends_with("{\"at\": \"NVML of GPU 0\"}\n")) << ended.said;
}

TEST(Probe, ADriverThatIsNotThereIsAnAnswer) {
  const Ended ended = run_probe("cuda 1048576", "cuInit:result=100");
  EXPECT_EQ(ended.status, 0);
  EXPECT_TRUE(contains(ended, "DRIVER_INIT_FAILED")) << ended.said;
}

TEST(Probe, WrongWordsAreRefused) {
  for (const std::string words : {"", "cuda", "cuda x", "nvml 1", "import 0 x 1 1"})
    EXPECT_EQ(run_probe(words + " 2>/dev/null").status, 125) << words;
}

}  // namespace
}  // namespace baton::test
