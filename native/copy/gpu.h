// One GPU as the pool and the copies use it: its primary context (the one PyTorch uses too), and what is asked
// of it often. Nothing here knows whether the GPU is real.
#pragma once
#include <cstdint>
#include <string>
#include <utility>

#include "native/driver/cuda_driver.h"
#include "native/driver/error.h"

namespace baton {

struct DeviceMemory {
  uint64_t free_bytes;
  uint64_t total_bytes;
};

class Gpu {
 public:
  // The process's object for this ordinal; lives until the process ends, because so does the context.
  // Errors: those of CudaDriver::instance(), INVALID_DEVICE, and driver errors.
  static Result<const Gpu*> get(int32_t ordinal);

  const cuda::CudaDriver& driver() const { return driver_; }
  int32_t ordinal() const { return ordinal_; }
  cuda::Device device() const { return device_; }
  cuda::Context context() const { return context_; }
  // What is added to an error so that a person knows which GPU it is about: "GPU 3".
  std::string name() const { return "GPU " + std::to_string(ordinal_); }

  // These need a current context; see CurrentContext.
  Result<DeviceMemory> memory() const;
  Result<uint64_t> granularity_bytes() const;

  cuda::AllocationProperties allocation(bool exportable) const;
  cuda::AccessDescriptor access(cuda::AccessFlags flags) const;

 private:
  Gpu(const cuda::CudaDriver& driver, int32_t ordinal, cuda::Device device, cuda::Context context)
      : driver_(driver), ordinal_(ordinal), device_(device), context_(context) {}

  const cuda::CudaDriver& driver_;
  int32_t ordinal_;
  cuda::Device device_;
  cuda::Context context_;
};

// Makes the GPU's primary context current for this thread, and the one before current again at the end.
class CurrentContext {
 public:
  // Errors: FORKED_CUDA, and those of the driver.
  explicit CurrentContext(const Gpu& gpu) : gpu_(gpu), status_(push(gpu)) {}
  ~CurrentContext() {
    cuda::Context popped = nullptr;
    if (status_) static_cast<void>(gpu_.driver().cuCtxPopCurrent(&popped));
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

  const Status& status() const { return status_; }

 private:
  static Status push(const Gpu& gpu);

  const Gpu& gpu_;
  Status status_;
};

// A stream of Baton's own, which waits for no other and is waited for by none.
class Stream {
 public:
  // Needs a current context.
  static Result<Stream> create(const Gpu& gpu);
  Stream(Stream&& other) noexcept : gpu_(other.gpu_), stream_(other.stream_) { other.stream_ = nullptr; }
  Stream& operator=(Stream&&) = delete;
  ~Stream();

  cuda::Stream get() const { return stream_; }
  Status synchronize() const { return gpu_->driver().cuStreamSynchronize(stream_); }
  // The stand-in's model clock; UINT64_MAX on a real GPU.
  uint64_t simulated_ns() const { return gpu_->driver().simulated_ns(stream_); }

 private:
  Stream(const Gpu& gpu, cuda::Stream stream) : gpu_(&gpu), stream_(stream) {}

  const Gpu* gpu_;
  cuda::Stream stream_;
};

// A point in a stream's work that can be waited for. Takes no times.
class Event {
 public:
  // Needs a current context.
  static Result<Event> create(const Gpu& gpu);
  Event(Event&& other) noexcept : gpu_(other.gpu_), event_(other.event_) { other.event_ = nullptr; }
  Event& operator=(Event&& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  Status record(const Stream& stream) const { return gpu_->driver().cuEventRecord(event_, stream.get()); }
  Status synchronize() const { return gpu_->driver().cuEventSynchronize(event_); }

 private:
  Event(const Gpu& gpu, cuda::Event event) : gpu_(&gpu), event_(event) {}

  const Gpu* gpu_;
  cuda::Event event_;
};

// Model time between two readings of Stream::simulated_ns; unknown stays unknown.
inline uint64_t simulated_difference_ns(uint64_t before, uint64_t after) {
  return before == UINT64_MAX || after == UINT64_MAX ? UINT64_MAX : after - before;
}

}  // namespace baton
