#include "native/driver/cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <utility>

#include "native/driver/library.h"

namespace baton::cuda {
namespace {

// The process whose driver instance() opened, and the same in each fork of it made since; 0 elsewhere.
std::atomic<pid_t> opened_by = 0;
std::atomic<pid_t> forked_from = 0;

// CUDA does not survive a fork: what its calls do in the child is not defined.
Error forked(const std::string& message, const std::string& parent, std::optional<int32_t> driver_result) {
  return Error{.code = "FORKED_CUDA",
               .message = message,
               .expected = "a process of its own (start method \"spawn\")",
               .found = "process " + std::to_string(getpid()) + ", a fork of " + parent + ", which had opened CUDA",
               .action =
                   "Start the process by spawn or exec, or fork before CUDA is used; data loader workers must "
                   "leave the GPU alone.",
               .driver_result = driver_result};
}

Error call_failed(const DriverLibrary& library, const char* function, int32_t result) {
  const std::string message = std::string(function) + " failed with " + result_name(result) + ".";
  // cuInit was called before; only the child of somebody who called it gets this.
  if (result == kNotInitialized) return forked(message, "a process", result);
  const bool out_of_memory = result == kOutOfMemory;
  std::string action = "Look the result up in the CUDA driver API's reference; the kernel log may say more (Xid).";
  if (out_of_memory) action = "Free memory on this GPU, or use a larger one; Baton's ledger says who holds it.";
  return Error{.code = out_of_memory ? "CUDA_OUT_OF_MEMORY" : "CUDA_CALL_FAILED",
               .message = message,
               .expected = "CUDA_SUCCESS",
               .found = result_name(result) + " (" + std::to_string(result) + ") from " + library.path +
                        ", driver version " + library.driver_version,
               .action = std::move(action),
               .driver_result = result};
}

Error initialisation_failed(const DriverLibrary& library, Error cause) {
  if (cause.driver_result == kNotInitialized) return cause;
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
  if (const pid_t parent = forked_from; parent != 0) {
    return forked("A GPU was used in a forked process.", "process " + std::to_string(parent), std::nullopt);
  }
  // Never destroyed: threads of the core may still be in a driver call while static objects go away.
  static const auto* const opened = [] {
    auto* result = new baton::Result<std::unique_ptr<const CudaDriver>>(open({}));
    if (result->ok()) {
      opened_by = getpid();
      pthread_atfork(nullptr, nullptr, [] { forked_from = opened_by.load(); });
    }
    return result;
  }();
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
