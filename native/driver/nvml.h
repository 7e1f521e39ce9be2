// libnvidia-ml, opened at run time: what a device holds, and who holds it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "native/driver/driver_function.h"
#include "native/driver/error.h"
#include "native/driver/nvml_abi.h"

namespace baton::nvml {

struct NvmlFunctions {
#define BATON_NVML_FUNCTION(member, names, arguments) DriverFunction<Return arguments> member;
#include "native/driver/nvml_functions.inc"
#undef BATON_NVML_FUNCTION
};

struct DeviceMemory {
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t used_bytes = 0;
  // Held by the driver itself; not known from drivers without nvmlDeviceGetMemoryInfo_v2.
  std::optional<uint64_t> reserved_bytes;
};

struct ProcessMemory {
  uint32_t pid = 0;
  // NVML often cannot tell (containers, MIG): unknown then, not 0.
  std::optional<uint64_t> used_bytes;
};

class Nvml : public NvmlFunctions {
 public:
  // Opens and initialises: `path`, else BATON_NVML_LIBRARY, else libnvidia-ml.so.1. Shut down when destroyed.
  // Errors: DRIVER_NOT_FOUND, DRIVER_SYMBOL_MISSING, DRIVER_INIT_FAILED.
  static baton::Result<std::unique_ptr<const Nvml>> open(const std::string& path = {});
  ~Nvml();

  const std::string& path() const noexcept { return library_.path; }
  const std::string& driver_version() const noexcept { return library_.driver_version; }  // "580.95.05" or "unknown"
  bool simulated() const noexcept { return simulated_; }
  uint32_t device_count() const noexcept { return static_cast<uint32_t>(devices_.size()); }

  // Index in NVML's order (PCI bus order; CUDA's may differ). Safe from several threads at once.
  baton::Result<DeviceMemory> memory(uint32_t index) const;
  // Processes with a compute context on the device, each pid once.
  baton::Result<std::vector<ProcessMemory>> processes(uint32_t index) const;
  baton::Result<std::string> uuid(uint32_t index) const;  // "GPU-…"
  baton::Result<std::string> name(uint32_t index) const;
  // The handle, for functions that have no wrapper here.
  baton::Result<Device> device(uint32_t index) const;

  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

 private:
  Nvml() = default;

  DriverLibrary library_;
  bool initialised_ = false;
  bool simulated_ = false;
  std::vector<Device> devices_;
};

// "NVML_ERROR_GPU_IS_LOST" for 15; "NVML_ERROR_<n>" for an unknown one.
std::string return_name(int32_t result);

}  // namespace baton::nvml
