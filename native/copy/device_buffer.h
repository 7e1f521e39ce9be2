// Device memory of Baton's own, outside every pool: tables that kernels read.
#pragma once
#include "native/copy/gpu.h"

namespace baton::copy {

class DeviceBuffer {
 public:
  // Needs a current context.
  static Result<DeviceBuffer> create(const Gpu& gpu, uint64_t bytes) {
    cuda::DevicePointer address = 0;
    Status status = gpu.driver().cuMemAlloc(&address, bytes);
    if (!status) return with_sizes(gpu, bytes, status.error());
    return DeviceBuffer(gpu, address);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept : gpu_(other.gpu_), address_(other.address_) { other.address_ = 0; }
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() {
    if (address_ == 0) return;
    const CurrentContext current(*gpu_);
    static_cast<void>(gpu_->driver().cuMemFree(address_));
  }

  uint64_t address() const { return address_; }
  template <typename T>
  T* as(uint64_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(address_ + offset_bytes);
  }

 private:
  DeviceBuffer(const Gpu& gpu, cuda::DevicePointer address) : gpu_(&gpu), address_(address) {}

  // What was wanted and what there is, when that is what is wrong.
  static Error with_sizes(const Gpu& gpu, uint64_t bytes, Error error) {
    if (error.driver_result != cuda::kOutOfMemory) return error;
    error.message = gpu.name() + " has no room for a table of " + std::to_string(bytes) + " bytes. " + error.message;
    error.expected = std::to_string(bytes) + " bytes free on " + gpu.name();
    if (const auto memory = gpu.memory()) {
      error.found = std::to_string(memory->free_bytes) + " of " + std::to_string(memory->total_bytes) + " bytes free";
    }
    return error;
  }

  const Gpu* gpu_;
  cuda::DevicePointer address_;
};

}  // namespace baton::copy
