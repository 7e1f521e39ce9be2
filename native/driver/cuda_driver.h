// libcuda, opened at run time. Nothing here needs a GPU or a CUDA toolkit to build or to load.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "native/driver/cuda_abi.h"
#include "native/driver/driver_function.h"
#include "native/driver/error.h"

namespace baton::cuda {

// Every function is optional. Members are named without their version suffix:
//   BATON_TRY(driver->cuMemMap(address, bytes, 0, handle, 0));
struct CudaFunctions {
#define BATON_CUDA_FUNCTION(member, names, arguments) DriverFunction<Result arguments> member;
#include "native/driver/cuda_functions.inc"
#undef BATON_CUDA_FUNCTION
};

class CudaDriver : public CudaFunctions {
 public:
  // The process's driver: opened and initialised (cuInit) by the first call, from BATON_CUDA_LIBRARY or else
  // libcuda.so.1. A failure is kept and given to every later caller. Thread safe. Never unloaded.
  // Errors: DRIVER_NOT_FOUND, DRIVER_SYMBOL_MISSING, DRIVER_INIT_FAILED; and FORKED_CUDA, always, in a process that
  // was forked after this or another library had opened the driver.
  static baton::Result<const CudaDriver*> instance();

  // Opens one library by path (or soname), apart from instance(). Empty path: as instance() chooses.
  static baton::Result<std::unique_ptr<const CudaDriver>> open(const std::string& path);

  // What dlopen resolved to.
  const std::string& path() const noexcept { return library_.path; }
  // As cuDriverGetVersion gives it: 13000 for CUDA 13.0.
  int32_t driver_version() const noexcept { return driver_version_; }
  int32_t device_count() const noexcept { return device_count_; }
  // True when this is the repository's stand-in: every time it tells is a model's.
  bool simulated() const noexcept { return simulated_ns_ != nullptr; }

  // The model's clock of a stream on a stand-in, in ns; BATON_UNKNOWN (all ones) on a real GPU.
  // Taken before and after work on a stream, the difference is the time that the work would take.
  uint64_t simulated_ns(Stream stream) const noexcept;

  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

 private:
  CudaDriver() = default;

  DriverLibrary library_;
  int32_t driver_version_ = 0;
  int32_t device_count_ = 0;
  uint64_t (*simulated_ns_)(Stream stream) = nullptr;
};

// "CUDA_ERROR_OUT_OF_MEMORY" for 2; usable before any library is loaded; "CUDA_ERROR_<n>" for an unknown one.
std::string result_name(int32_t result);

}  // namespace baton::cuda
