// libnvidia-ml of the stand-in: initialisation, versions, finding devices.
#include <strings.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "native/fakegpu/common/identity.h"
#include "native/fakegpu/nvml/state.h"
#include "native/fakegpu/nvml/text.h"

using namespace baton::nvml;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

namespace {

// A fault on an initialisation must not leave it counted.
Return initialise(const char* function) {
  if (const Return result = initialise_nvml(); result != kSuccess) return result;
  std::shared_ptr<NvmlState> state;
  const Return struck = enter(&state, function);
  if (struck != kSuccess) shut_down_nvml();
  return struck;
}

}  // namespace

STANDIN_FUNCTION(nvmlInit_v2) {
  return initialise(__func__);
}
STANDIN_FUNCTION(nvmlInit) {
  return initialise(__func__);
}
STANDIN_FUNCTION(nvmlInitWithFlags, unsigned flags) {
  (void)flags;
  return initialise(__func__);
}
STANDIN_FUNCTION(nvmlShutdown) {
  return shut_down_nvml();
}

STANDIN_EXPORT const char* nvmlErrorString(Return result);
const char* nvmlErrorString(Return result) {
  switch (result) {
    case kSuccess:
      return "Success";
#define BATON_NVML_RETURN(constant, value, name, text) \
  case constant:                                       \
    return text;
#include "native/driver/nvml_results.inc"
#undef BATON_NVML_RETURN
  }
  return "unknown error";
}

STANDIN_FUNCTION(nvmlSystemGetDriverVersion, char* text, unsigned length) {
  STANDIN_ENTER();
  return write_text(kDriverVersionText, text, length);
}

STANDIN_FUNCTION(nvmlSystemGetNVMLVersion, char* text, unsigned length) {
  STANDIN_ENTER();
  return write_text("13.580.0.standin", text, length);
}

STANDIN_FUNCTION(nvmlSystemGetCudaDriverVersion_v2, int* version) {
  STANDIN_ENTER();
  if (version == nullptr) return kInvalidArgument;
  *version = kCudaVersion;
  return kSuccess;
}

STANDIN_FUNCTION(nvmlSystemGetCudaDriverVersion, int* version) {
  return nvmlSystemGetCudaDriverVersion_v2(version);
}

STANDIN_FUNCTION(nvmlDeviceGetCount_v2, unsigned* count) {
  STANDIN_ENTER();
  if (count == nullptr) return kInvalidArgument;
  *count = state->table->devices();
  return kSuccess;
}

STANDIN_FUNCTION(nvmlDeviceGetCount, unsigned* count) {
  return nvmlDeviceGetCount_v2(count);
}

STANDIN_FUNCTION(nvmlDeviceGetHandleByIndex_v2, unsigned index, Device* device) {
  STANDIN_ENTER();
  if (device == nullptr || index >= state->table->devices()) return kInvalidArgument;
  *device = device_handle(index);
  return kSuccess;
}

STANDIN_FUNCTION(nvmlDeviceGetHandleByIndex, unsigned index, Device* device) {
  return nvmlDeviceGetHandleByIndex_v2(index, device);
}

STANDIN_FUNCTION(nvmlDeviceGetHandleByUUID, const char* uuid, Device* device) {
  STANDIN_ENTER();
  if (uuid == nullptr || device == nullptr) return kInvalidArgument;
  for (uint32_t index = 0; index < state->table->devices(); ++index) {
    if (device_uuid_text(index) != uuid) continue;
    *device = device_handle(index);
    return kSuccess;
  }
  return kNotFound;
}

STANDIN_FUNCTION(nvmlDeviceGetHandleByPciBusId_v2, const char* bus_id, Device* device) {
  STANDIN_ENTER();
  if (bus_id == nullptr || device == nullptr) return kInvalidArgument;
  for (uint32_t index = 0; index < state->table->devices(); ++index) {
    const bool same =
        strcasecmp(bus_id, pci_bus_id(index, 8).c_str()) == 0 || strcasecmp(bus_id, pci_bus_id(index, 4).c_str()) == 0;
    if (!same) continue;
    *device = device_handle(index);
    return kSuccess;
  }
  return kNotFound;
}

STANDIN_FUNCTION(nvmlDeviceGetHandleByPciBusId, const char* bus_id, Device* device) {
  return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}
