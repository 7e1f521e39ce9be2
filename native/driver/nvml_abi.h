// The part of NVML's binary interface that Baton uses, declared here so that no header of NVIDIA's is needed.
// Sizes and values are NVIDIA's; the static_asserts pin the layouts that the library reads and writes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::nvml {

using Device = struct DeviceOpaque*;

// nvmlReturn_t. A driver may give values that are not named here.
enum Return : int32_t {
  kSuccess = 0,
#define BATON_NVML_RETURN(constant, value, name, text) constant = value,
#include "native/driver/nvml_results.inc"
#undef BATON_NVML_RETURN
};

// What NVML writes where it has no figure: unknown, never a number.
inline constexpr uint64_t kValueNotAvailable64 = UINT64_MAX;

struct Memory {
  uint64_t total;
  uint64_t free;
  uint64_t used;
};
static_assert(sizeof(Memory) == 24);

// `version` must be set by the caller, else the call fails.
struct MemoryV2 {
  uint32_t version;
  uint64_t total;
  uint64_t reserved;
  uint64_t free;
  uint64_t used;
};
static_assert(sizeof(MemoryV2) == 40);
inline constexpr uint32_t kMemoryV2Version = sizeof(MemoryV2) | (2U << 24U);
static_assert(kMemoryV2Version == 0x02000028);

struct ProcessInfoV1 {
  uint32_t pid;
  uint64_t used_bytes;
};
static_assert(sizeof(ProcessInfoV1) == 16);

// Of nvmlDeviceGetComputeRunningProcesses_v2 and, but for drivers 535.43 to 535.86, of _v3.
struct ProcessInfoV2 {
  uint32_t pid;
  uint64_t used_bytes;
  uint32_t gpu_instance_id;
  uint32_t compute_instance_id;
};
static_assert(sizeof(ProcessInfoV2) == 24);

// What _v3 took in drivers 535.43 to 535.86, without any version to tell.
struct ProcessInfo535 {
  uint32_t pid;
  uint64_t used_bytes;
  uint32_t gpu_instance_id;
  uint32_t compute_instance_id;
  uint64_t protected_bytes;
};
static_assert(sizeof(ProcessInfo535) == 32);

// Of nvmlDeviceGetRunningProcessDetailList, which says its version and its size.
struct ProcessDetail {
  uint32_t pid;
  uint64_t used_bytes;
  uint32_t gpu_instance_id;
  uint32_t compute_instance_id;
  uint64_t protected_bytes;
};
static_assert(sizeof(ProcessDetail) == 32);
struct ProcessDetailList {
  uint32_t version;
  uint32_t mode;  // 0: compute, 1: graphics, 2: MPS compute
  uint32_t count;
  ProcessDetail* processes;
};
static_assert(sizeof(ProcessDetailList) == 24);
inline constexpr uint32_t kProcessDetailListVersion = sizeof(ProcessDetailList) | (1U << 24U);

struct PciInfo {
  char bus_id_legacy[16];
  uint32_t domain;
  uint32_t bus;
  uint32_t device;
  uint32_t pci_device_id;
  uint32_t pci_subsystem_id;
  char bus_id[32];
};
static_assert(sizeof(PciInfo) == 68);

struct Utilization {
  uint32_t gpu;
  uint32_t memory;
};
static_assert(sizeof(Utilization) == 8);

// nvmlEnableState_t, nvmlComputeMode_t, nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t.
inline constexpr int kEnabled = 1;
inline constexpr int kP2PCapabilityRead = 0;
inline constexpr int kP2PCapabilityNvlink = 2;
inline constexpr int kP2PStatusOk = 0;
inline constexpr unsigned kMostNvLinks = 18;

}  // namespace baton::nvml
