// The kernels that the stand-in can run: C++ functions under the names that the PTX modules give theirs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "native/fakegpu/common/config.h"
#include "native/fakegpu/cuda/device_memory.h"
#include "native/fakegpu/cuda/host_memory.h"
#include "native/fakegpu/cuda/model_clock.h"

namespace baton::standin {

struct KernelContext {
  uint32_t device;
  DeviceMemory& memory;
  HostMemory& host;
  const Bandwidth& bandwidth;
};

struct Kernel {
  const char* name;
  // Of the one parameter that each of them takes, a structure by value.
  uint32_t parameter_bytes;
  void (*run)(const void* parameter);
  std::vector<Cost> (*cost)(const KernelContext& context, const void* parameter);
};

// nullptr when no kernel of that name is known.
const Kernel* find_kernel(std::string_view name);

// Names of the kernels (.entry) in PTX text.
std::vector<std::string> entries_of_ptx(std::string_view text);

}  // namespace baton::standin
