// libnvidia-ml of the stand-in: a device, its memory, and who uses it. What a stand-in does not have (load,
// temperature, power) is not supported, never a made-up figure.
#include <sys/types.h>

#include <map>
#include <string>

#include "native/fakegpu/common/identity.h"
#include "native/fakegpu/nvml/state.h"
#include "native/fakegpu/nvml/text.h"

using namespace baton::nvml;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

STANDIN_FUNCTION(nvmlDeviceGetName, Device device, char* text, unsigned length) {
  STANDIN_ENTER_DEVICE(device);
  return write_text(device_name(), text, length);
}

STANDIN_FUNCTION(nvmlDeviceGetUUID, Device device, char* text, unsigned length) {
  STANDIN_ENTER_DEVICE(device);
  return write_text(device_uuid_text(index), text, length);
}

STANDIN_FUNCTION(nvmlDeviceGetIndex, Device device, unsigned* out) {
  STANDIN_ENTER_DEVICE(device);
  if (out == nullptr) return kInvalidArgument;
  *out = index;
  return kSuccess;
}

STANDIN_FUNCTION(nvmlDeviceGetMinorNumber, Device device, unsigned* out) {
  STANDIN_ENTER_DEVICE(device);
  if (out == nullptr) return kInvalidArgument;
  *out = index;
  return kSuccess;
}

STANDIN_FUNCTION(nvmlDeviceGetCudaComputeCapability, Device device, int* major, int* minor) {
  STANDIN_ENTER_DEVICE(device);
  if (major == nullptr || minor == nullptr) return kInvalidArgument;
  *major = 9;
  *minor = 0;
  return kSuccess;
}

STANDIN_FUNCTION(nvmlDeviceGetPciInfo_v3, Device device, PciInfo* info) {
  STANDIN_ENTER_DEVICE(device);
  if (info == nullptr) return kInvalidArgument;
  *info = {};
  info->bus = pci_bus(index);
  write_text(pci_bus_id(index, 4), info->bus_id_legacy, sizeof(info->bus_id_legacy));
  return write_text(pci_bus_id(index, 8), info->bus_id, sizeof(info->bus_id));
}

namespace {

Return read_memory(const NvmlState& state, uint32_t index, uint64_t* total, uint64_t* used) {
  *total = state.table->bytes_per_device();
  return state.table->used_bytes(index, used) == TableResult::kOk ? kSuccess : kTimeout;
}

template <class Entry>
Return write_processes(const NvmlState& state, uint32_t index, unsigned* count, Entry* entries,
                       Entry (*entry)(pid_t pid, uint64_t bytes)) {
  if (count == nullptr || (entries == nullptr && *count != 0)) return kInvalidArgument;
  std::map<pid_t, uint64_t> bytes_by_pid;
  if (state.table->processes(index, &bytes_by_pid) != TableResult::kOk) return kTimeout;
  const unsigned room = *count;
  *count = static_cast<unsigned>(bytes_by_pid.size());
  if (room < bytes_by_pid.size()) return kInsufficientSize;
  if (entries == nullptr) return kSuccess;  // there is nothing to write
  for (const auto& [pid, bytes] : bytes_by_pid)
    *entries++ = entry(pid, bytes);
  return kSuccess;
}

constexpr uint32_t kNoInstance = UINT32_MAX;  // not a part (MIG) of a GPU

ProcessInfoV1 entry_v1(pid_t pid, uint64_t bytes) {
  return {static_cast<uint32_t>(pid), bytes};
}
ProcessInfoV2 entry_v2(pid_t pid, uint64_t bytes) {
  return {static_cast<uint32_t>(pid), bytes, kNoInstance, kNoInstance};
}

Return no_processes(unsigned* count) {
  if (count == nullptr) return kInvalidArgument;
  *count = 0;
  return kSuccess;
}

}  // namespace

STANDIN_FUNCTION(nvmlDeviceGetMemoryInfo, Device device, Memory* memory) {
  STANDIN_ENTER_DEVICE(device);
  if (memory == nullptr) return kInvalidArgument;
  const Return result = read_memory(*state, index, &memory->total, &memory->used);
  memory->free = memory->total - memory->used;
  return result;
}

STANDIN_FUNCTION(nvmlDeviceGetMemoryInfo_v2, Device device, MemoryV2* memory) {
  STANDIN_ENTER_DEVICE(device);
  if (memory == nullptr) return kInvalidArgument;
  if (memory->version != kMemoryV2Version) return kArgumentVersionMismatch;
  const Return result = read_memory(*state, index, &memory->total, &memory->used);
  memory->reserved = 0;
  memory->free = memory->total - memory->used;
  return result;
}

STANDIN_FUNCTION(nvmlDeviceGetComputeRunningProcesses, Device device, unsigned* count, ProcessInfoV1* processes) {
  STANDIN_ENTER_DEVICE(device);
  return write_processes(*state, index, count, processes, entry_v1);
}

STANDIN_FUNCTION(nvmlDeviceGetComputeRunningProcesses_v2, Device device, unsigned* count, ProcessInfoV2* processes) {
  STANDIN_ENTER_DEVICE(device);
  return write_processes(*state, index, count, processes, entry_v2);
}

STANDIN_FUNCTION(nvmlDeviceGetComputeRunningProcesses_v3, Device device, unsigned* count, ProcessInfoV2* processes) {
  STANDIN_ENTER_DEVICE(device);
  return write_processes(*state, index, count, processes, entry_v2);
}

STANDIN_FUNCTION(nvmlDeviceGetGraphicsRunningProcesses_v3, Device device, unsigned* count, ProcessInfoV2* processes) {
  STANDIN_ENTER_DEVICE(device);
  (void)processes;
  return no_processes(count);
}

STANDIN_FUNCTION(nvmlDeviceGetMPSComputeRunningProcesses_v3, Device device, unsigned* count, ProcessInfoV2* processes) {
  STANDIN_ENTER_DEVICE(device);
  (void)processes;
  return no_processes(count);
}

STANDIN_FUNCTION(nvmlDeviceGetUtilizationRates, Device device, Utilization* utilization) {
  STANDIN_ENTER_DEVICE(device);
  (void)utilization;
  return kNotSupported;
}

STANDIN_FUNCTION(nvmlDeviceGetTemperature, Device device, int sensor, unsigned* celsius) {
  STANDIN_ENTER_DEVICE(device);
  (void)sensor;
  (void)celsius;
  return kNotSupported;
}

STANDIN_FUNCTION(nvmlDeviceGetPowerUsage, Device device, unsigned* milliwatts) {
  STANDIN_ENTER_DEVICE(device);
  (void)milliwatts;
  return kNotSupported;
}

STANDIN_FUNCTION(nvmlDeviceGetMigMode, Device device, unsigned* now, unsigned* pending) {
  STANDIN_ENTER_DEVICE(device);
  (void)now;
  (void)pending;
  return kNotSupported;
}

STANDIN_FUNCTION(nvmlDeviceGetComputeMode, Device device, int* mode) {
  STANDIN_ENTER_DEVICE(device);
  if (mode == nullptr) return kInvalidArgument;
  *mode = 0;  // any number of processes
  return kSuccess;
}
