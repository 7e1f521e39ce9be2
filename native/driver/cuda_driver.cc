#include "native/driver/cuda_driver.h"

#include <dlfcn.h>

#include <string>
#include <utility>

#include "native/driver/library.h"

namespace baton::cuda {
namespace {

Error call_failed(const DriverLibrary& library, const char* function, int32_t result) {
  const bool out_of_memory = result == kOutOfMemory;
  const bool after_fork = result == kNotInitialized;
  std::string action = "Look the result up in the CUDA driver API's reference; the kernel log may say more (Xid).";
  if (out_of_memory) action = "Free memory on this GPU, or use a larger one; Baton's ledger says who holds it.";
  if (after_fork) action = "Use CUDA in the process that initialised it: a forked child cannot.";
  return Error{.code = out_of_memory ? "CUDA_OUT_OF_MEMORY" : "CUDA_CALL_FAILED",
               .message = std::string(function) + " failed with " + result_name(result) + ".",
               .expected = "CUDA_SUCCESS",
               .found = result_name(result) + " (" + std::to_string(result) + ") from " + library.path +
                        ", driver version " + library.driver_version,
               .action = std::move(action),
               .driver_result = result};
}

Error initialisation_failed(const DriverLibrary& library, Error cause) {
  const bool no_device = cause.driver_result == kNoDevice;
  cause.code = "DRIVER_INIT_FAILED";
  cause.message = "CUDA cannot be used: " + cause.message;
  cause.expected = "a driver with at least one GPU in " + library.path;
  cause.action = no_device ? "Run where a GPU is visible to this process, or on the stand-in GPUs."
                           : "Check the driver with `nvidia-smi`; reload it or reboot when it fails too.";
  return cause;
}

}  // namespace

baton::Result<const CudaDriver*> CudaDriver::instance() {
  // Never destroyed: threads of the core may still be in a driver call while static objects go away.
  static const auto* const opened = new baton::Result<std::unique_ptr<const CudaDriver>>(open({}));
  if (!opened->ok()) return opened->error();
  return opened->value().get();
}

baton::Result<std::unique_ptr<const CudaDriver>> CudaDriver::open(const std::string& path) {
  BATON_ASSIGN(const OpenedLibrary opened, open_library(path, "BATON_CUDA_LIBRARY", "libcuda.so.1"));

  std::unique_ptr<CudaDriver> driver(new CudaDriver);
  driver->library_.path = opened.path;
  driver->library_.call_failed = call_failed;
#define BATON_CUDA_FUNCTION(member, names, arguments) \
  bind_function(driver->member, &driver->library_, opened.handle, names);
#include "native/driver/cuda_functions.inc"
#undef BATON_CUDA_FUNCTION

  // Before cuInit, so that its error can name the version too.
  if (driver->cuDriverGetVersion && driver->cuDriverGetVersion.raw(&driver->driver_version_) == kSuccess) {
    driver->library_.driver_version = std::to_string(driver->driver_version_);
  }
  BATON_TRY(driver->cuInit.available());
  if (Status initialised = driver->cuInit(0); !initialised) {
    return initialisation_failed(driver->library_, std::move(initialised).error());
  }
  BATON_TRY(driver->cuDeviceGetCount(&driver->device_count_));
  if (dlsym(opened.handle, "batonStandinVersion") != nullptr) {
    driver->simulated_ns_ = reinterpret_cast<uint64_t (*)(Stream)>(dlsym(opened.handle, "batonStandinSimulatedNs"));
  }
  return std::unique_ptr<const CudaDriver>(std::move(driver));
}

uint64_t CudaDriver::simulated_ns(Stream stream) const noexcept {
  return simulated_ns_ != nullptr ? simulated_ns_(stream) : UINT64_MAX;
}

}  // namespace baton::cuda
