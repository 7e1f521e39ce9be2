// libcuda of the stand-in: modules and launches. A module is PTX text; of its kernels those can be run that
// kernels.h knows as C++ functions, and the text is never interpreted.
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "native/fakegpu/cuda/kernels.h"
#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

namespace {

constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kMaxThreadsPerMultiprocessor = 2048;

const Kernel* kernel_of(Function function) {
  return reinterpret_cast<const Kernel*>(function);
}

}  // namespace

STANDIN_FUNCTION(cuModuleLoadData, Module* module, const void* image) {
  STANDIN_ENTER_CONTEXT();
  if (module == nullptr || image == nullptr) return kInvalidValue;
  const std::string_view text = static_cast<const char*>(image);
  if (text.find(".version") == std::string_view::npos || text.find(".target") == std::string_view::npos) {
    return kInvalidImage;
  }
  auto loaded = std::make_unique<LoadedModule>();
  for (std::string& name : entries_of_ptx(text))
    loaded->entries.insert(std::move(name));
  *module = reinterpret_cast<Module>(loaded.get());
  const std::lock_guard lock(state->modules_mutex);
  state->modules.emplace(*module, std::move(loaded));
  return kSuccess;
}

STANDIN_FUNCTION(cuModuleUnload, Module module) {
  STANDIN_ENTER_CONTEXT();
  const std::lock_guard lock(state->modules_mutex);
  return state->modules.erase(module) > 0 ? kSuccess : kInvalidHandle;
}

STANDIN_FUNCTION(cuModuleGetFunction, Function* function, Module module, const char* name) {
  STANDIN_ENTER_CONTEXT();
  if (function == nullptr || name == nullptr) return kInvalidValue;
  const std::lock_guard lock(state->modules_mutex);
  const auto found = state->modules.find(module);
  if (found == state->modules.end()) return kInvalidHandle;
  if (!found->second->entries.contains(name)) return kNotFound;
  const Kernel* kernel = find_kernel(name);
  if (kernel == nullptr) {
    complain(std::string("the kernel ") + name + " has no C++ function here, so it cannot run on a stand-in");
    return kNotFound;
  }
  *function = reinterpret_cast<Function>(const_cast<Kernel*>(kernel));
  return kSuccess;
}

STANDIN_FUNCTION(cuFuncGetAttribute, int* value, FunctionAttribute attribute, Function function) {
  STANDIN_ENTER_CONTEXT();
  if (value == nullptr || function == nullptr) return kInvalidValue;
  switch (attribute) {
    case kFunctionMaxThreadsPerBlock:
      *value = kMaxThreadsPerBlock;
      return kSuccess;
    case kFunctionRegisters:
      *value = 32;
      return kSuccess;
    case kFunctionSharedBytes:
    case kFunctionMaxDynamicSharedBytes:
      *value = 0;
      return kSuccess;
  }
  return kInvalidValue;
}

STANDIN_FUNCTION(cuFuncSetAttribute, Function function, FunctionAttribute attribute, int value) {
  STANDIN_ENTER_CONTEXT();
  (void)value;
  return function != nullptr && attribute == kFunctionMaxDynamicSharedBytes ? kSuccess : kInvalidValue;
}

STANDIN_FUNCTION(cuOccupancyMaxActiveBlocksPerMultiprocessor, int* blocks, Function function, int block_size,
                 size_t dynamic_shared_bytes) {
  STANDIN_ENTER_CONTEXT();
  (void)dynamic_shared_bytes;
  if (blocks == nullptr || function == nullptr || block_size <= 0) return kInvalidValue;
  *blocks = block_size <= kMaxThreadsPerBlock ? kMaxThreadsPerMultiprocessor / block_size : 0;
  return kSuccess;
}

STANDIN_FUNCTION(cuLaunchKernel, Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                 unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters,
                 void** extra) {
  STANDIN_ENTER_CONTEXT();
  (void)shared_bytes;
  const Kernel* kernel = kernel_of(function);
  if (kernel == nullptr) return kInvalidHandle;
  const bool some_work = grid_x != 0 && grid_y != 0 && grid_z != 0 && block_x != 0 && block_y != 0 && block_z != 0;
  const bool block_fits = uint64_t{block_x} * block_y * block_z <= kMaxThreadsPerBlock;
  if (!some_work || !block_fits || extra != nullptr || parameters == nullptr || parameters[0] == nullptr) {
    return kInvalidValue;
  }
  // Parameters are taken when the kernel is launched; what they point to is read when it runs.
  std::vector<std::byte> parameter(kernel->parameter_bytes);
  std::memcpy(parameter.data(), parameters[0], parameter.size());
  return state->submit(stream, [kernel, parameter = std::move(parameter), state, device = context->device] {
    kernel->run(parameter.data());
    return kernel->cost({device, state->memory, state->host, state->config.bandwidth}, parameter.data());
  });
}
