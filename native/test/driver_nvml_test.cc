// The table of libnvidia-ml, on libraries of every kind that drivers have shipped.
#include <gtest/gtest.h>

#include "native/driver/nvml.h"
#include "native/test/driver_support.h"

namespace baton::test {
namespace {

using nvml::Nvml;

const std::string kBase = R"(
extern "C" int nvmlInit_v2() { return 0; }
extern "C" int nvmlShutdown() { return 0; }
extern "C" int nvmlSystemGetDriverVersion(char* text, unsigned length) { strcpy(text, "535.54.03"); return 0; }
extern "C" int nvmlDeviceGetCount_v2(unsigned* count) { *count = 1; return 0; }
extern "C" int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) { *device = (void*)8; return 0; }
struct V1 { unsigned pid; uint64_t used; };
struct V2 { unsigned pid; uint64_t used; unsigned gi, ci; };
struct V535 { unsigned pid; uint64_t used; unsigned gi, ci; uint64_t secret; };
const uint64_t NOT_AVAILABLE = UINT64_MAX;
template <class E> int list(unsigned* count, E* out) {
  if (!out || *count < 3) { *count = 3; return 7; }
  *count = 3; memset(out, 0xAB, 3 * sizeof(E));
  out[0].pid = 11; out[0].used = 1000;
  out[1].pid = 12; out[1].used = NOT_AVAILABLE;
  out[2].pid = 11; out[2].used = 24;
  return 0;
}
)";

std::unique_ptr<const Nvml> open(const MadeLibrary& library) {
  auto opened = Nvml::open(library.path());
  if (!opened.ok()) {
    ADD_FAILURE() << to_json(opened.error());
    return nullptr;
  }
  return std::move(opened).value();
}

// Every list above tells of pid 11 with 1,024 bytes in two contexts, and of pid 12 without a figure.
void expect_two_processes(const Nvml& nvml) {
  const auto processes = nvml.processes(0);
  ASSERT_TRUE(processes.ok()) << to_json(processes.error());
  ASSERT_EQ(processes->size(), 2U);
  EXPECT_EQ((*processes)[0].pid, 11U);
  EXPECT_EQ((*processes)[0].used_bytes, 1024U);
  EXPECT_EQ((*processes)[1].pid, 12U);
  EXPECT_EQ((*processes)[1].used_bytes, std::nullopt) << "not available is unknown, not a number";
}

TEST(NvmlTable, ProcessesOfACurrentDriver) {
  const MadeLibrary library(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, V2* out) { return list(count, out); }
extern "C" int nvmlDeviceGetConfComputeMemSizeInfo(void*, void*) { return 3; }
extern "C" int nvmlDeviceGetRunningProcessDetailList(void*, void*) { return 3; }
)");
  expect_two_processes(*open(library));
}

TEST(NvmlTable, ProcessesOfTheDriversWithALongerStructure) {
  const MadeLibrary library(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, V535* out) { return list(count, out); }
extern "C" int nvmlDeviceGetConfComputeMemSizeInfo(void*, void*) { return 3; }
)");
  expect_two_processes(*open(library));
}

TEST(NvmlTable, ProcessesOfOlderDrivers) {
  const MadeLibrary second(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses_v2(void*, unsigned* count, V2* out) { return list(count, out); }
)");
  expect_two_processes(*open(second));
  const MadeLibrary first(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* count, V1* out) { return list(count, out); }
)");
  expect_two_processes(*open(first));
}

TEST(NvmlTable, NoProcessesIsAnEmptyList) {
  const MadeLibrary library(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, V2*) { *count = 0; return 0; }
)");
  const auto processes = open(library)->processes(0);
  ASSERT_TRUE(processes.ok());
  EXPECT_TRUE(processes->empty());
}

TEST(NvmlTable, AListThatNeverFitsIsAnErrorNotALoop) {
  const MadeLibrary library(kBase + R"(
extern "C" int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, V2*) { *count += 100; return 7; }
)");
  const auto processes = open(library)->processes(0);
  ASSERT_FALSE(processes.ok());
  EXPECT_EQ(processes.error().driver_result, nvml::kInsufficientSize);
}

TEST(NvmlTable, ADriverWithoutAnyListSaysSo) {
  const MadeLibrary library(kBase);
  const auto processes = open(library)->processes(0);
  ASSERT_FALSE(processes.ok());
  EXPECT_EQ(processes.error().code, "DRIVER_SYMBOL_MISSING");
  EXPECT_NE(processes.error().found.find("535.54.03"), std::string::npos) << processes.error().found;
}

TEST(NvmlTable, MemoryByTheNewestStructureThatTheDriverTakes) {
  const std::string old_call = R"(
extern "C" int nvmlDeviceGetMemoryInfo(void*, uint64_t* m) { m[0] = 100; m[1] = 60; m[2] = 40; return 0; }
)";
  const MadeLibrary current(kBase + old_call + R"(
extern "C" int nvmlDeviceGetMemoryInfo_v2(void*, unsigned* version) {
  if (*version != 0x02000028) return 25;
  uint64_t* m = (uint64_t*)(version + 2); m[0] = 100; m[1] = 5; m[2] = 60; m[3] = 35; return 0;
}
)");
  auto memory = open(current)->memory(0);
  ASSERT_TRUE(memory.ok());
  EXPECT_EQ(memory->total_bytes, 100U);
  EXPECT_EQ(memory->reserved_bytes, 5U);
  EXPECT_EQ(memory->free_bytes, 60U);
  EXPECT_EQ(memory->used_bytes, 35U);

  const MadeLibrary odd(kBase + old_call + "extern \"C\" int nvmlDeviceGetMemoryInfo_v2(void*, void*) { return 25; }");
  const MadeLibrary old(kBase + old_call);
  for (const MadeLibrary* library : {&odd, &old}) {
    memory = open(*library)->memory(0);
    ASSERT_TRUE(memory.ok());
    EXPECT_EQ(memory->used_bytes, 40U);
    EXPECT_EQ(memory->reserved_bytes, std::nullopt) << "not told, so not known";
  }
}

TEST(NvmlTable, ALostGpuIsAnErrorAndNotAnOlderCall) {
  const MadeLibrary library(kBase + R"(
extern "C" int nvmlDeviceGetMemoryInfo_v2(void*, void*) { return 15; }
extern "C" int nvmlDeviceGetMemoryInfo(void*, uint64_t* m) { m[0] = m[1] = m[2] = 0; return 0; }
)");
  const auto memory = open(library)->memory(0);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code, "NVML_CALL_FAILED");
  EXPECT_EQ(memory.error().driver_result, nvml::kGpuIsLost);
}

TEST(NvmlTable, AnIndexThatIsNotThereIsNamed) {
  const MadeLibrary library(kBase);
  const auto memory = open(library)->memory(1);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code, "NO_SUCH_GPU");
  EXPECT_EQ(memory.error().expected, "an index below 1");
  EXPECT_EQ(memory.error().found, "1");
}

TEST(NvmlTable, AFailedInitialisationIsAnError) {
  const MadeLibrary library("extern \"C\" int nvmlInit() { return 9; }");
  const auto opened = Nvml::open(library.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, "DRIVER_INIT_FAILED");
  EXPECT_EQ(opened.error().driver_result, nvml::kDriverNotLoaded);
}

}  // namespace
}  // namespace baton::test
