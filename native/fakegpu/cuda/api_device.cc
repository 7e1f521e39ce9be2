// libcuda of the stand-in: initialisation, devices, errors.
#include <strings.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "native/fakegpu/common/identity.h"
#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

STANDIN_FUNCTION(cuInit, unsigned flags) {
  if (flags != 0) return kInvalidValue;
  if (const auto result = State::initialise(); result != kSuccess) return result;
  STANDIN_ENTER(kAnyDevice);
  return kSuccess;
}

STANDIN_FUNCTION(cuDriverGetVersion, int* version) {
  if (version == nullptr) return kInvalidValue;
  *version = kCudaVersion;
  return kSuccess;
}

STANDIN_FUNCTION(cuGetErrorName, Result result, const char** name) {
  if (name == nullptr) return kInvalidValue;
  switch (result) {
    case kSuccess:
      *name = "CUDA_SUCCESS";
      return kSuccess;
#define BATON_CUDA_RESULT(constant, value, text_of_name, text) \
  case constant:                                               \
    *name = text_of_name;                                      \
    return kSuccess;
#include "native/driver/cuda_results.inc"
#undef BATON_CUDA_RESULT
  }
  *name = nullptr;
  return kInvalidValue;
}

STANDIN_FUNCTION(cuGetErrorString, Result result, const char** string) {
  if (string == nullptr) return kInvalidValue;
  switch (result) {
    case kSuccess:
      *string = "no error";
      return kSuccess;
#define BATON_CUDA_RESULT(constant, value, name, text) \
  case constant:                                       \
    *string = text;                                    \
    return kSuccess;
#include "native/driver/cuda_results.inc"
#undef BATON_CUDA_RESULT
  }
  *string = nullptr;
  return kInvalidValue;
}

STANDIN_FUNCTION(cuDeviceGetCount, int* count) {
  STANDIN_ENTER(kAnyDevice);
  if (count == nullptr) return kInvalidValue;
  *count = static_cast<int>(state->table->devices());
  return kSuccess;
}

STANDIN_FUNCTION(cuDeviceGet, Device* device, int ordinal) {
  STANDIN_ENTER(ordinal);
  if (device == nullptr) return kInvalidValue;
  if (!valid_device(*state, ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

namespace {

Result write_text(const std::string& text, char* out, int length) {
  if (out == nullptr || length <= 0) return kInvalidValue;
  const size_t copied = std::min(text.size(), static_cast<size_t>(length) - 1);
  std::memcpy(out, text.data(), copied);
  out[copied] = '\0';
  return kSuccess;
}

}  // namespace

STANDIN_FUNCTION(cuDeviceGetName, char* name, int length, Device device) {
  STANDIN_ENTER(device);
  if (!valid_device(*state, device)) return kInvalidDevice;
  return write_text(device_name(), name, length);
}

STANDIN_FUNCTION(cuDeviceGetPCIBusId, char* text, int length, Device device) {
  STANDIN_ENTER(device);
  if (!valid_device(*state, device)) return kInvalidDevice;
  return write_text(pci_bus_id(static_cast<uint32_t>(device), 4), text, length);
}

STANDIN_FUNCTION(cuDeviceGetByPCIBusId, Device* device, const char* text) {
  STANDIN_ENTER(kAnyDevice);
  if (device == nullptr || text == nullptr) return kInvalidValue;
  for (uint32_t index = 0; index < state->table->devices(); ++index) {
    if (strcasecmp(text, pci_bus_id(index, 4).c_str()) == 0) {
      *device = static_cast<Device>(index);
      return kSuccess;
    }
  }
  return kInvalidDevice;
}

STANDIN_FUNCTION(cuDeviceGetUuid_v2, Uuid* uuid, Device device) {
  STANDIN_ENTER(device);
  if (uuid == nullptr) return kInvalidValue;
  if (!valid_device(*state, device)) return kInvalidDevice;
  const auto bytes = device_uuid(static_cast<uint32_t>(device));
  std::copy(bytes.begin(), bytes.end(), uuid->bytes);
  return kSuccess;
}

STANDIN_FUNCTION(cuDeviceGetUuid, Uuid* uuid, Device device) {
  return cuDeviceGetUuid_v2(uuid, device);
}

STANDIN_FUNCTION(cuDeviceTotalMem_v2, size_t* bytes, Device device) {
  STANDIN_ENTER(device);
  if (bytes == nullptr) return kInvalidValue;
  if (!valid_device(*state, device)) return kInvalidDevice;
  *bytes = state->table->bytes_per_device();
  return kSuccess;
}

STANDIN_FUNCTION(cuDeviceGetAttribute, int* value, DeviceAttribute attribute, Device device) {
  STANDIN_ENTER(device);
  if (value == nullptr) return kInvalidValue;
  if (!valid_device(*state, device)) return kInvalidDevice;
  switch (attribute) {
    case kAttributeMaxThreadsPerBlock:
      *value = 1024;
      return kSuccess;
    case kAttributeWarpSize:
      *value = 32;
      return kSuccess;
    case kAttributeMultiprocessorCount:
      *value = 132;
      return kSuccess;
    case kAttributePciBusId:
      *value = static_cast<int>(pci_bus(static_cast<uint32_t>(device)));
      return kSuccess;
    case kAttributeAsyncEngineCount:
      *value = 3;
      return kSuccess;
    case kAttributeComputeCapabilityMajor:
      *value = 9;
      return kSuccess;
    case kAttributeCanMapHostMemory:
    case kAttributeUnifiedAddressing:
    case kAttributeHostRegisterSupported:
    case kAttributeVirtualMemoryManagementSupported:
    case kAttributeHandleTypePosixFileDescriptorSupported:
      *value = 1;
      return kSuccess;
    case kAttributeIntegrated:
    case kAttributePciDeviceId:
    case kAttributePciDomainId:
    case kAttributeComputeCapabilityMinor:
      *value = 0;
      return kSuccess;
  }
  return kInvalidValue;
}

STANDIN_FUNCTION(cuDeviceCanAccessPeer, int* can, Device device, Device peer) {
  STANDIN_ENTER(device);
  if (can == nullptr) return kInvalidValue;
  if (!valid_device(*state, device) || !valid_device(*state, peer)) return kInvalidDevice;
  *can = device != peer && state->config.peers ? 1 : 0;
  return kSuccess;
}

STANDIN_FUNCTION(cuDeviceGetP2PAttribute, int* value, P2PAttribute attribute, Device source, Device destination) {
  STANDIN_ENTER(source);
  if (value == nullptr) return kInvalidValue;
  if (!valid_device(*state, source) || !valid_device(*state, destination) || source == destination) {
    return kInvalidDevice;
  }
  switch (attribute) {
    case kP2PPerformanceRank:
      *value = 0;
      return kSuccess;
    case kP2PAccessSupported:
    case kP2PNativeAtomics:
      *value = state->config.peers ? 1 : 0;
      return kSuccess;
  }
  return kInvalidValue;
}

namespace {

// cuInit for those who ask cuGetProcAddress: the CUDA runtime, and with it PyTorch. An empty CUDA_VISIBLE_DEVICES
// means no GPU to them, as it does with a real driver; without that they would find GPUs that they cannot use,
// and warn about it. Baton looks cuInit up by its name, and sees its stand-ins.
Result init_for_runtime(unsigned flags) {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && *visible == '\0') return kNoDevice;
  return cuInit(flags);
}

}  // namespace

STANDIN_FUNCTION(cuGetProcAddress_v2, const char* name, void** address, int version, uint64_t flags,
                 ProcAddressQueryResult* status) {
  (void)flags;
  if (name == nullptr || address == nullptr) return kInvalidValue;
  *address = find_newest_function(name);
  if (std::string_view(name) == "cuInit") *address = reinterpret_cast<void*>(&init_for_runtime);
  const bool asked_too_low = version < 2000;
  ProcAddressQueryResult result = *address != nullptr ? kProcFound : kProcNotFound;
  if (asked_too_low) result = kProcVersionTooLow;
  if (result != kProcFound) *address = nullptr;
  if (status != nullptr) *status = result;
  return result == kProcFound ? kSuccess : kNotFound;
}
