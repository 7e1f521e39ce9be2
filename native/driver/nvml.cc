#include "native/driver/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>

#include "native/driver/library.h"

namespace baton::nvml {
namespace {

// A process list is asked for with this much room more than was just needed, so often at most: contexts appear
// between the two calls.
constexpr unsigned kSpareProcesses = 8;
constexpr int kProcessListAttempts = 5;

Error call_failed(const DriverLibrary& library, const char* function, int32_t result) {
  std::string action = "Check the GPUs with `nvidia-smi`; the kernel log may say more (Xid).";
  if (result == kNoPermission) action = "Run as a user who may ask NVML for this.";
  if (result == kGpuIsLost || result == kResetRequired) action = "Take the GPU out of use; reset it or reboot.";
  return Error{.code = "NVML_CALL_FAILED",
               .message = std::string(function) + " failed with " + return_name(result) + ".",
               .expected = "NVML_SUCCESS",
               .found = return_name(result) + " (" + std::to_string(result) + ") from " + library.path +
                        ", driver version " + library.driver_version,
               .action = std::move(action),
               .driver_result = result};
}

std::optional<uint64_t> known(uint64_t value) {
  if (value == kValueNotAvailable64) return std::nullopt;
  return value;
}

// NVML may list a process once for each of its contexts. Known figures add up; one unknown makes the sum unknown.
template <class Entry>
std::vector<ProcessMemory> by_process(const std::vector<Entry>& entries) {
  std::map<uint32_t, ProcessMemory> processes;
  for (const Entry& entry : entries) {
    const auto [place, fresh] = processes.try_emplace(entry.pid, ProcessMemory{entry.pid, known(entry.used_bytes)});
    if (fresh) continue;
    auto& sum = place->second.used_bytes;
    const auto more = known(entry.used_bytes);
    sum = sum && more ? std::optional(*sum + *more) : std::nullopt;
  }
  std::vector<ProcessMemory> result;
  result.reserve(processes.size());
  for (const auto& [pid, process] : processes)
    result.push_back(process);
  return result;
}

// Calls a list function until its answer fits. `call(&count, pointer)` is the raw driver call.
template <class Entry, class Call, class Function>
baton::Result<std::vector<ProcessMemory>> list_processes(const Function& function, const Call& call) {
  std::vector<Entry> entries;
  for (int attempt = 0; attempt < kProcessListAttempts; ++attempt) {
    auto count = static_cast<unsigned>(entries.size());
    const Return result = call(&count, entries.empty() ? nullptr : entries.data());
    if (result == kSuccess) {
      // With NULL, success means that there are none.
      entries.resize(std::min<size_t>(count, entries.size()));
      return by_process(entries);
    }
    if (result != kInsufficientSize) return function.error_of(result);
    entries.resize(count + kSpareProcesses);
  }
  return function.error_of(kInsufficientSize);
}

}  // namespace

baton::Result<std::unique_ptr<const Nvml>> Nvml::open(const std::string& path) {
  BATON_ASSIGN(const OpenedLibrary opened, open_library(path, "BATON_NVML_LIBRARY", "libnvidia-ml.so.1"));

  std::unique_ptr<Nvml> nvml(new Nvml);
  nvml->library_.path = opened.path;
  nvml->library_.call_failed = call_failed;
#define BATON_NVML_FUNCTION(member, names, arguments) \
  bind_function(nvml->member, &nvml->library_, opened.handle, names);
#include "native/driver/nvml_functions.inc"
#undef BATON_NVML_FUNCTION
  nvml->simulated_ = dlsym(opened.handle, "batonStandinVersion") != nullptr;

  BATON_TRY(nvml->nvmlInit.available());
  if (Status initialised = nvml->nvmlInit(); !initialised) {
    Error error = std::move(initialised).error();
    error.code = "DRIVER_INIT_FAILED";
    error.message = "NVML cannot be used: " + error.message;
    error.action = "Check that the NVIDIA driver is loaded and `nvidia-smi` works.";
    return error;
  }
  nvml->initialised_ = true;

  std::array<char, 96> version{};
  if (nvml->nvmlSystemGetDriverVersion &&
      nvml->nvmlSystemGetDriverVersion.raw(version.data(), version.size()) == kSuccess) {
    nvml->library_.driver_version = version.data();
  }
  unsigned count = 0;
  BATON_TRY(nvml->nvmlDeviceGetCount(&count));
  for (unsigned index = 0; index < count; ++index) {
    Device device = nullptr;
    BATON_TRY(nvml->nvmlDeviceGetHandleByIndex(index, &device));
    nvml->devices_.push_back(device);
  }
  return std::unique_ptr<const Nvml>(std::move(nvml));
}

// The library stays loaded: NVML does not promise that it may be unloaded while one of its threads runs.
Nvml::~Nvml() {
  if (initialised_ && nvmlShutdown) nvmlShutdown.raw();
}

baton::Result<Device> Nvml::device(uint32_t index) const {
  if (index < devices_.size()) return devices_[index];
  return Error{.code = "NO_SUCH_GPU",
               .message = "There is no GPU " + std::to_string(index) + " on this machine.",
               .expected = "an index below " + std::to_string(devices_.size()),
               .found = std::to_string(index),
               .action = "Use the index that `nvidia-smi` shows.",
               .driver_result = std::nullopt};
}

baton::Result<DeviceMemory> Nvml::memory(uint32_t index) const {
  BATON_ASSIGN(const Device handle, device(index));
  if (nvmlDeviceGetMemoryInfo_v2) {
    MemoryV2 memory{};
    memory.version = kMemoryV2Version;
    const Return result = nvmlDeviceGetMemoryInfo_v2.raw(handle, &memory);
    if (result == kSuccess) return DeviceMemory{memory.total, memory.free, memory.used, memory.reserved};
    // A library that knows another version of the structure: the old call still answers.
    if (result != kArgumentVersionMismatch && result != kFunctionNotFound) {
      return nvmlDeviceGetMemoryInfo_v2.error_of(result);
    }
  }
  // Its `used` includes what the driver reserves.
  Memory memory{};
  BATON_TRY(nvmlDeviceGetMemoryInfo(handle, &memory));
  return DeviceMemory{memory.total, memory.free, memory.used, std::nullopt};
}

// Drivers 535.43 to 535.86 shipped a _v3 with a longer structure and no version to tell. They have the call for
// confidential computing, which is older than the change, and lack the list that came with its repair.
static bool has_535_layout(const NvmlFunctions& nvml) {
  return static_cast<bool>(nvml.nvmlDeviceGetComputeRunningProcesses_v3) &&
         static_cast<bool>(nvml.nvmlDeviceGetConfComputeMemSizeInfo) &&
         !static_cast<bool>(nvml.nvmlDeviceGetRunningProcessDetailList);
}

baton::Result<std::vector<ProcessMemory>> Nvml::processes(uint32_t index) const {
  BATON_ASSIGN(const Device handle, device(index));
  if (has_535_layout(*this)) {
    return list_processes<ProcessInfo535>(nvmlDeviceGetComputeRunningProcesses_v3, [&](unsigned* count, auto* entries) {
      return nvmlDeviceGetComputeRunningProcesses_v3.raw(handle, count, entries);
    });
  }
  if (nvmlDeviceGetComputeRunningProcesses_v3) {
    return list_processes<ProcessInfoV2>(nvmlDeviceGetComputeRunningProcesses_v3, [&](unsigned* count, auto* entries) {
      return nvmlDeviceGetComputeRunningProcesses_v3.raw(handle, count, entries);
    });
  }
  if (nvmlDeviceGetComputeRunningProcesses_v2) {
    return list_processes<ProcessInfoV2>(nvmlDeviceGetComputeRunningProcesses_v2, [&](unsigned* count, auto* entries) {
      return nvmlDeviceGetComputeRunningProcesses_v2.raw(handle, count, entries);
    });
  }
  BATON_TRY(nvmlDeviceGetComputeRunningProcesses_v1.available());
  return list_processes<ProcessInfoV1>(nvmlDeviceGetComputeRunningProcesses_v1, [&](unsigned* count, auto* entries) {
    return nvmlDeviceGetComputeRunningProcesses_v1.raw(handle, count, entries);
  });
}

baton::Result<std::string> Nvml::uuid(uint32_t index) const {
  BATON_ASSIGN(const Device handle, device(index));
  std::array<char, 96> text{};
  BATON_TRY(nvmlDeviceGetUUID(handle, text.data(), text.size()));
  return std::string(text.data());
}

baton::Result<std::string> Nvml::name(uint32_t index) const {
  BATON_ASSIGN(const Device handle, device(index));
  std::array<char, 96> text{};
  BATON_TRY(nvmlDeviceGetName(handle, text.data(), text.size()));
  return std::string(text.data());
}

}  // namespace baton::nvml
