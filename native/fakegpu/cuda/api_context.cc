// libcuda of the stand-in: primary contexts.
#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

STANDIN_FUNCTION(cuDevicePrimaryCtxRetain, Context* context, Device device) {
  STANDIN_ENTER(device);
  if (context == nullptr) return kInvalidValue;
  if (!valid_device(*state, device)) return kInvalidDevice;
  return state->retain_context(static_cast<uint32_t>(device), context);
}

STANDIN_FUNCTION(cuDevicePrimaryCtxRelease_v2, Device device) {
  STANDIN_ENTER(device);
  if (!valid_device(*state, device)) return kInvalidDevice;
  return state->release_context(static_cast<uint32_t>(device));
}

STANDIN_FUNCTION(cuDevicePrimaryCtxRelease, Device device) {
  return cuDevicePrimaryCtxRelease_v2(device);
}

STANDIN_FUNCTION(cuDevicePrimaryCtxGetState, Device device, unsigned* flags, int* active) {
  STANDIN_ENTER(device);
  if (flags == nullptr || active == nullptr) return kInvalidValue;
  if (!valid_device(*state, device)) return kInvalidDevice;
  *flags = 0;
  *active = state->context_active(static_cast<uint32_t>(device)) ? 1 : 0;
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxSetCurrent, Context handle) {
  STANDIN_ENTER(kAnyDevice);
  auto& stack = State::context_stack();
  if (handle == nullptr) {
    if (!stack.empty()) stack.pop_back();
    return kSuccess;
  }
  PrimaryContext* context = state->find_context(handle);
  if (context == nullptr) return kInvalidContext;
  if (stack.empty()) {
    stack.push_back(context);
  } else {
    stack.back() = context;
  }
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxGetCurrent, Context* handle) {
  STANDIN_ENTER(kAnyDevice);
  if (handle == nullptr) return kInvalidValue;
  *handle = reinterpret_cast<Context>(state->current());
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxPushCurrent_v2, Context handle) {
  STANDIN_ENTER(kAnyDevice);
  PrimaryContext* context = state->find_context(handle);
  if (context == nullptr) return kInvalidContext;
  State::context_stack().push_back(context);
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxPopCurrent_v2, Context* handle) {
  STANDIN_ENTER(kAnyDevice);
  auto& stack = State::context_stack();
  if (stack.empty()) return kInvalidContext;
  if (handle != nullptr) *handle = reinterpret_cast<Context>(stack.back());
  stack.pop_back();
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxGetDevice, Device* device) {
  STANDIN_ENTER_CONTEXT();
  if (device == nullptr) return kInvalidValue;
  *device = static_cast<Device>(context->device);
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxSynchronize) {
  STANDIN_ENTER_CONTEXT();
  for (const auto& stream : state->streams_of(context->device)) {
    stream->drain();
    state->clock.program_reached(stream->done_ns());
  }
  return kSuccess;
}

STANDIN_FUNCTION(cuCtxEnablePeerAccess, Context peer, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  if (flags != 0) return kInvalidValue;
  const PrimaryContext* other = state->find_context(peer);
  if (other == nullptr || other == context) return kInvalidContext;
  // Access between the stand-ins is always there; what counts for mapped memory is cuMemSetAccess.
  return kSuccess;
}
