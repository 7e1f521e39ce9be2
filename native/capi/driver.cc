#include <algorithm>
#include <cstring>

#include "native/capi/guard.h"
#include "native/copy/gpu.h"
#include "native/driver/nvml.h"

using baton::Status;
using baton::capi::guarded;
using baton::capi::required;

namespace {

template <size_t N>
void copy_text(char (&out)[N], const std::string& text) {
  const size_t bytes = std::min(text.size(), N - 1);
  std::memcpy(out, text.data(), bytes);
  out[bytes] = '\0';
}

}  // namespace

// That there is no driver is an answer, not an error.
baton_status baton_driver_probe(baton_driver_info* out) {
  return guarded([&]() -> Status {
    BATON_TRY(required({out}));
    *out = {};
    const auto driver = baton::cuda::CudaDriver::instance();
    if (!driver) {
      copy_text(out->reason, driver.error().message + " " + driver.error().found);
      return {};
    }
    out->available = 1;
    out->simulated = (*driver)->simulated() ? 1 : 0;
    out->driver_version = (*driver)->driver_version();
    out->device_count = (*driver)->device_count();
    copy_text(out->path, (*driver)->path());
    return {};
  });
}

baton_status baton_gpu_count(uint32_t* out) {
  return guarded([&]() -> Status {
    BATON_TRY(required({out}));
    BATON_ASSIGN(const auto nvml, baton::nvml::Nvml::open());
    *out = nvml->device_count();
    return {};
  });
}

baton_status baton_device_memory(int32_t device, uint64_t* free_bytes, uint64_t* total_bytes) {
  return guarded([&]() -> Status {
    BATON_TRY(required({free_bytes, total_bytes}));
    BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
    const baton::CurrentContext current(*gpu);
    BATON_TRY(current.status());
    BATON_ASSIGN(const baton::DeviceMemory memory, gpu->memory());
    *free_bytes = memory.free_bytes;
    *total_bytes = memory.total_bytes;
    return {};
  });
}
