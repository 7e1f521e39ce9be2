// libcuda of the stand-in: device memory, mapped and allocated; registered host memory.
#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

namespace {

// The GPU that an allocation is for, or kAnyDevice when the properties cannot be used.
int32_t device_of(const AllocationProperties* properties) {
  return properties != nullptr && properties->location.type == kLocationDevice ? properties->location.id : kAnyDevice;
}

Result check(const State& state, const AllocationProperties* properties) {
  if (properties == nullptr || properties->type != kAllocationTypePinned) return kInvalidValue;
  if (properties->location.type != kLocationDevice) return kInvalidValue;
  const auto handles = properties->requested_handle_types;
  if (handles != kHandleNone && handles != kHandlePosixFileDescriptor) return kNotSupported;
  return valid_device(state, properties->location.id) ? kSuccess : kInvalidDevice;
}

uint64_t address_of(const void* pointer) {
  return reinterpret_cast<uint64_t>(pointer);
}

}  // namespace

STANDIN_FUNCTION(cuMemGetInfo_v2, size_t* free_bytes, size_t* total_bytes) {
  STANDIN_ENTER_CONTEXT();
  if (free_bytes == nullptr || total_bytes == nullptr) return kInvalidValue;
  uint64_t used = 0;
  if (state->table->used_bytes(context->device, &used) != TableResult::kOk) return kSystemNotReady;
  *total_bytes = state->table->bytes_per_device();
  *free_bytes = *total_bytes - used;
  return kSuccess;
}

STANDIN_FUNCTION(cuMemAlloc_v2, DevicePointer* pointer, size_t bytes) {
  STANDIN_ENTER_CONTEXT();
  if (pointer == nullptr) return kInvalidValue;
  uint64_t address = 0;
  const Result result = state->memory.allocate(context->device, bytes, &address);
  if (result == kSuccess) *pointer = address;
  return result;
}

STANDIN_FUNCTION(cuMemFree_v2, DevicePointer pointer) {
  STANDIN_ENTER_CONTEXT();
  if (pointer == 0) return kSuccess;
  // As on a GPU: memory is freed when the work that may use it is done.
  for (const auto& stream : state->streams_of(context->device))
    stream->drain();
  return state->memory.free_allocation(pointer);
}

STANDIN_FUNCTION(cuMemGetAllocationGranularity, size_t* bytes, const AllocationProperties* properties,
                 GranularityOption option) {
  STANDIN_ENTER(device_of(properties));
  if (bytes == nullptr || (option != kGranularityMinimum && option != kGranularityRecommended)) return kInvalidValue;
  if (const auto wrong = check(*state, properties); wrong != kSuccess) return wrong;
  *bytes = state->table->granularity_bytes();
  return kSuccess;
}

STANDIN_FUNCTION(cuMemAddressReserve, DevicePointer* pointer, size_t bytes, size_t alignment, DevicePointer wish,
                 unsigned long long flags) {
  STANDIN_ENTER(kAnyDevice);
  if (pointer == nullptr || flags != 0) return kInvalidValue;
  uint64_t address = 0;
  const Result result = state->memory.reserve(bytes, alignment, wish, &address);
  if (result == kSuccess) *pointer = address;
  return result;
}

STANDIN_FUNCTION(cuMemAddressFree, DevicePointer pointer, size_t bytes) {
  STANDIN_ENTER(kAnyDevice);
  return state->memory.free_address(pointer, bytes);
}

STANDIN_FUNCTION(cuMemCreate, AllocationHandle* handle, size_t bytes, const AllocationProperties* properties,
                 unsigned long long flags) {
  STANDIN_ENTER(device_of(properties));
  if (handle == nullptr || flags != 0) return kInvalidValue;
  if (const auto wrong = check(*state, properties); wrong != kSuccess) return wrong;
  const bool exportable = properties->requested_handle_types == kHandlePosixFileDescriptor;
  return state->memory.create(static_cast<uint32_t>(properties->location.id), bytes, exportable, handle);
}

STANDIN_FUNCTION(cuMemRelease, AllocationHandle handle) {
  STANDIN_ENTER(kAnyDevice);
  return state->memory.release(handle);
}

STANDIN_FUNCTION(cuMemMap, DevicePointer pointer, size_t bytes, size_t offset, AllocationHandle handle,
                 unsigned long long flags) {
  STANDIN_ENTER(kAnyDevice);
  if (offset != 0 || flags != 0) return kInvalidValue;
  return state->memory.map(pointer, bytes, handle);
}

STANDIN_FUNCTION(cuMemUnmap, DevicePointer pointer, size_t bytes) {
  STANDIN_ENTER(kAnyDevice);
  return state->memory.unmap(pointer, bytes);
}

STANDIN_FUNCTION(cuMemSetAccess, DevicePointer pointer, size_t bytes, const AccessDescriptor* descriptors,
                 size_t count) {
  STANDIN_ENTER(descriptors != nullptr && count > 0 ? descriptors[0].location.id : kAnyDevice);
  if (descriptors == nullptr || count == 0) return kInvalidValue;
  if (!state->config.peers) {
    const auto mapping = state->memory.mapping_at(pointer);
    for (size_t i = 0; i < count && mapping; ++i) {
      if (static_cast<uint32_t>(descriptors[i].location.id) != mapping->device) return kInvalidDevice;
    }
  }
  return state->memory.set_access(pointer, bytes, descriptors, count);
}

STANDIN_FUNCTION(cuMemGetAccess, unsigned long long* flags, const MemoryLocation* location, DevicePointer pointer) {
  STANDIN_ENTER(location != nullptr ? location->id : kAnyDevice);
  if (flags == nullptr || location == nullptr || location->type != kLocationDevice) return kInvalidValue;
  if (!valid_device(*state, location->id)) return kInvalidDevice;
  AccessFlags access = kAccessNone;
  const Result result = state->memory.get_access(pointer, static_cast<uint32_t>(location->id), &access);
  if (result == kSuccess) *flags = static_cast<unsigned long long>(access);
  return result;
}

STANDIN_FUNCTION(cuMemExportToShareableHandle, void* shareable, AllocationHandle handle, HandleType type,
                 unsigned long long flags) {
  STANDIN_ENTER(kAnyDevice);
  if (shareable == nullptr || flags != 0) return kInvalidValue;
  if (type != kHandlePosixFileDescriptor) return kNotSupported;
  return state->memory.export_to(handle, static_cast<int*>(shareable));
}

STANDIN_FUNCTION(cuMemImportFromShareableHandle, AllocationHandle* handle, void* shareable, HandleType type) {
  STANDIN_ENTER(kAnyDevice);
  if (handle == nullptr) return kInvalidValue;
  if (type != kHandlePosixFileDescriptor) return kNotSupported;
  return state->memory.import(static_cast<int>(reinterpret_cast<intptr_t>(shareable)), handle);
}

STANDIN_FUNCTION(cuMemRetainAllocationHandle, AllocationHandle* handle, void* address) {
  STANDIN_ENTER(kAnyDevice);
  if (handle == nullptr) return kInvalidValue;
  return state->memory.retain(address_of(address), handle);
}

STANDIN_FUNCTION(cuMemGetAllocationPropertiesFromHandle, AllocationProperties* properties, AllocationHandle handle) {
  STANDIN_ENTER(kAnyDevice);
  if (properties == nullptr) return kInvalidValue;
  return state->memory.properties(handle, properties);
}

STANDIN_FUNCTION(cuMemHostRegister_v2, void* pointer, size_t bytes, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  (void)flags;
  return state->host.register_range(address_of(pointer), bytes);
}

STANDIN_FUNCTION(cuMemHostUnregister, void* pointer) {
  STANDIN_ENTER_CONTEXT();
  return state->host.unregister_range(address_of(pointer));
}

STANDIN_FUNCTION(cuMemHostAlloc, void** pointer, size_t bytes, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  (void)flags;
  if (pointer == nullptr) return kInvalidValue;
  uint64_t begin = 0;
  const Result result = state->host.allocate(bytes, &begin);
  if (result == kSuccess) *pointer = reinterpret_cast<void*>(begin);  // NOLINT(performance-no-int-to-ptr)
  return result;
}

STANDIN_FUNCTION(cuMemFreeHost, void* pointer) {
  STANDIN_ENTER_CONTEXT();
  for (const auto& stream : state->streams_of(context->device))
    stream->drain();
  return state->host.free(address_of(pointer));
}

STANDIN_FUNCTION(cuMemHostGetDevicePointer_v2, DevicePointer* device_pointer, void* pointer, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  if (device_pointer == nullptr || flags != 0 || !state->host.find(address_of(pointer))) return kInvalidValue;
  *device_pointer = address_of(pointer);
  return kSuccess;
}

namespace {

Result attribute_of_device_memory(State& state, const MappedRange& range, PointerAttribute attribute, uint64_t address,
                                  void* value) {
  switch (attribute) {
    case kPointerContext: {
      Context context = nullptr;
      if (state.retain_context(range.device, &context) != kSuccess) return kOutOfMemory;
      state.release_context(range.device);
      *static_cast<Context*>(value) = context;
      return kSuccess;
    }
    case kPointerMemoryType:
      *static_cast<uint32_t*>(value) = kMemoryDevice;
      return kSuccess;
    case kPointerDevicePointer:
      *static_cast<DevicePointer*>(value) = address;
      return kSuccess;
    case kPointerDeviceOrdinal:
      *static_cast<int32_t*>(value) = static_cast<int32_t>(range.device);
      return kSuccess;
    case kPointerRangeStart:
      *static_cast<DevicePointer*>(value) = range.begin;
      return kSuccess;
    case kPointerRangeSize:
      *static_cast<size_t*>(value) = range.bytes;
      return kSuccess;
    case kPointerMapped:
      *static_cast<uint32_t*>(value) = 1;
      return kSuccess;
    case kPointerHostPointer:
      return kInvalidValue;
  }
  return kNotSupported;
}

Result attribute_of_host_memory(const PrimaryContext& context, const HostRange& range, PointerAttribute attribute,
                                uint64_t address, void* value) {
  switch (attribute) {
    case kPointerMemoryType:
      *static_cast<uint32_t*>(value) = kMemoryHost;
      return kSuccess;
    case kPointerDevicePointer:
    case kPointerHostPointer:
      *static_cast<uint64_t*>(value) = address;
      return kSuccess;
    case kPointerDeviceOrdinal:
      *static_cast<int32_t*>(value) = static_cast<int32_t>(context.device);
      return kSuccess;
    case kPointerRangeStart:
      *static_cast<uint64_t*>(value) = range.begin;
      return kSuccess;
    case kPointerRangeSize:
      *static_cast<size_t*>(value) = range.bytes;
      return kSuccess;
    case kPointerMapped:
      *static_cast<uint32_t*>(value) = 1;
      return kSuccess;
    case kPointerContext:
      break;
  }
  return kNotSupported;
}

}  // namespace

STANDIN_FUNCTION(cuPointerGetAttribute, void* value, PointerAttribute attribute, DevicePointer pointer) {
  STANDIN_ENTER_CONTEXT();
  if (value == nullptr) return kInvalidValue;
  if (const auto range = state->memory.mapping_at(pointer)) {
    return attribute_of_device_memory(*state, *range, attribute, pointer, value);
  }
  if (const auto range = state->host.find(pointer)) {
    return attribute_of_host_memory(*context, *range, attribute, pointer, value);
  }
  // A reserved address without memory is known, and not mapped.
  if (attribute == kPointerMapped && state->memory.reserved(pointer)) {
    *static_cast<uint32_t*>(value) = 0;
    return kSuccess;
  }
  return kInvalidValue;
}
