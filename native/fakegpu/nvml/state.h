// What the stand-in's NVML knows in this process, between nvmlInit and nvmlShutdown.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "native/driver/nvml_abi.h"
#include "native/fakegpu/common/faults.h"
#include "native/fakegpu/common/registry.h"
#include "native/fakegpu/common/table.h"

namespace baton::standin {

struct NvmlState {
  std::unique_ptr<Table> table;
  Faults faults;
};

// Counted: each initialise needs its shut_down.
nvml::Return initialise_nvml();
nvml::Return shut_down_nvml();

// The start of every call. A device handle is known by its address.
nvml::Return enter(std::shared_ptr<NvmlState>* state, const char* function);
nvml::Return enter(std::shared_ptr<NvmlState>* state, uint32_t* index, const char* function, nvml::Device device);
nvml::Device device_handle(uint32_t index);

}  // namespace baton::standin

#define STANDIN_FUNCTION(name, ...) STANDIN_DEFINE(baton::nvml::Return, name, __VA_ARGS__)

// Declares `state`.
#define STANDIN_ENTER()                             \
  std::shared_ptr<baton::standin::NvmlState> state; \
  if (const auto refused = baton::standin::enter(&state, __func__); refused != kSuccess) return refused

// Declares `state` and `index`.
#define STANDIN_ENTER_DEVICE(device)                \
  std::shared_ptr<baton::standin::NvmlState> state; \
  uint32_t index = 0;                               \
  if (const auto refused = baton::standin::enter(&state, &index, __func__, device); refused != kSuccess) return refused
