#include "native/copy/gpu.h"

#include <map>
#include <mutex>

namespace baton {

Result<const Gpu*> Gpu::get(int32_t ordinal) {
  // First of all: a fork may have happened while another thread held the mutex.
  BATON_ASSIGN(const cuda::CudaDriver* driver, cuda::CudaDriver::instance());
  static std::mutex mutex;
  // Never destroyed: threads of other libraries may still free memory while static objects go.
  static auto& gpus = *new std::map<int32_t, const Gpu*>;
  const std::lock_guard lock(mutex);
  if (const auto found = gpus.find(ordinal); found != gpus.end()) return found->second;

  if (ordinal < 0 || ordinal >= driver->device_count()) {
    return Error{.code = "INVALID_DEVICE",
                 .message = "There is no GPU " + std::to_string(ordinal) + ".",
                 .expected = "a device number from 0 to " + std::to_string(driver->device_count() - 1),
                 .found = std::to_string(ordinal),
                 .action = "Check the device number and CUDA_VISIBLE_DEVICES.",
                 .driver_result = std::nullopt};
  }
  cuda::Device device = 0;
  BATON_TRY(driver->cuDeviceGet(&device, ordinal));
  cuda::Context context = nullptr;
  BATON_TRY(driver->cuDevicePrimaryCtxRetain(&context, device));
  const Gpu* gpu = new Gpu(*driver, ordinal, device, context);
  gpus.emplace(ordinal, gpu);
  return gpu;
}

Status CurrentContext::push(const Gpu& gpu) {
  // What was opened before a fork is no better than what is opened after it.
  if (const auto driver = cuda::CudaDriver::instance(); !driver) return driver.error();
  return gpu.driver().cuCtxPushCurrent(gpu.context());
}

Result<DeviceMemory> Gpu::memory() const {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  BATON_TRY(driver_.cuMemGetInfo(&free_bytes, &total_bytes));
  return DeviceMemory{free_bytes, total_bytes};
}

Result<uint64_t> Gpu::granularity_bytes() const {
  const cuda::AllocationProperties properties = allocation(true);
  size_t bytes = 0;
  BATON_TRY(driver_.cuMemGetAllocationGranularity(&bytes, &properties, cuda::kGranularityMinimum));
  return static_cast<uint64_t>(bytes);
}

cuda::AllocationProperties Gpu::allocation(bool exportable) const {
  cuda::AllocationProperties properties{};
  properties.type = cuda::kAllocationTypePinned;
  properties.requested_handle_types = exportable ? cuda::kHandlePosixFileDescriptor : cuda::kHandleNone;
  properties.location = {cuda::kLocationDevice, ordinal_};
  return properties;
}

cuda::AccessDescriptor Gpu::access(cuda::AccessFlags flags) const {
  return {{cuda::kLocationDevice, ordinal_}, flags};
}

Result<Stream> Stream::create(const Gpu& gpu) {
  cuda::Stream stream = nullptr;
  BATON_TRY(gpu.driver().cuStreamCreate(&stream, cuda::kStreamNonBlocking));
  return Stream(gpu, stream);
}

Stream::~Stream() {
  if (stream_ == nullptr) return;
  const CurrentContext current(*gpu_);
  static_cast<void>(gpu_->driver().cuStreamDestroy(stream_));
}

Result<Event> Event::create(const Gpu& gpu) {
  cuda::Event event = nullptr;
  BATON_TRY(gpu.driver().cuEventCreate(&event, cuda::kEventDisableTiming));
  return Event(gpu, event);
}

Event::~Event() {
  if (event_ == nullptr) return;
  const CurrentContext current(*gpu_);
  static_cast<void>(gpu_->driver().cuEventDestroy(event_));
}

}  // namespace baton
