// libcuda of the stand-in: copies and fills. Every range is looked at before the call is accepted, so that a copy
// to or from memory that is not there, or is only for reading, is an error and not a fault.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

namespace {

void* pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);
}  // NOLINT(performance-no-int-to-ptr)
uint64_t address_of(const void* p) {
  return reinterpret_cast<uint64_t>(p);
}

enum class Side { kAny, kHost, kDevice };

struct End {
  bool on_device = false;
  uint32_t device = 0;
  bool pinned = false;  // when on the host
};

// What one end of a copy is; nullopt when the copy must be refused.
std::optional<End> find_end(State& state, uint64_t address, uint64_t bytes, AccessFlags needed, Side side) {
  const Place place = state.memory.find(address, bytes, needed);
  switch (place.kind) {
    case Place::Kind::kMapped:
      return End{.on_device = true, .device = place.device, .pinned = false};
    case Place::Kind::kForbidden:
    case Place::Kind::kUnmapped:
      return std::nullopt;
    case Place::Kind::kOther:
      break;
  }
  // Host memory serves as a device pointer only when it is registered.
  const bool pinned = state.host.pinned(address, bytes);
  if (address == 0 || (side == Side::kDevice && !pinned)) return std::nullopt;
  return End{.on_device = false, .device = 0, .pinned = pinned};
}

Cost cost_of_copy(const Bandwidth& bandwidth, const End& destination, const End& source, uint32_t device,
                  uint64_t bytes) {
  if (destination.on_device && source.on_device) {
    if (destination.device == source.device) return {Engine::kWithin, source.device, bytes, bandwidth.device};
    return {Engine::kPeer, destination.device, bytes, bandwidth.peer};
  }
  if (destination.on_device) {
    return {Engine::kToDevice, destination.device, bytes, source.pinned ? bandwidth.pinned : bandwidth.pageable};
  }
  const bool pinned = destination.pinned && (source.on_device || source.pinned);
  return {Engine::kToHost, source.on_device ? source.device : device, bytes,
          pinned ? bandwidth.pinned : bandwidth.pageable};
}

// Pages that nobody has touched come in one fault at a time. For a large copy the kernel brings them in at once, in
// a third of the time; where it cannot, the copy does.
void bring_pages_in(uint64_t address, uint64_t bytes) {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kWorthwhile = 256 * kPage;
  const uint64_t begin = (address + kPage - 1) / kPage * kPage;
  const uint64_t end = (address + bytes) / kPage * kPage;
#if defined(MADV_POPULATE_WRITE)
  if (bytes >= kWorthwhile) madvise(pointer(begin), end - begin, MADV_POPULATE_WRITE);
#endif
}

enum class Wait { kNo, kYes };

Result copy(State& state, uint32_t device, uint64_t destination, Side destination_side, uint64_t source,
            Side source_side, uint64_t bytes, Stream handle, Wait wait) {
  const auto stream = state.find_stream(handle);
  if (!stream) return kInvalidHandle;
  if (bytes == 0) return kSuccess;
  const auto to = find_end(state, destination, bytes, kAccessReadWrite, destination_side);
  const auto from = find_end(state, source, bytes, kAccessRead, source_side);
  if (!to || !from) return kInvalidValue;
  const Cost cost = cost_of_copy(state.config.bandwidth, *to, *from, device, bytes);
  const bool to_device = to->on_device;
  const Result result = state.submit(handle, [=] {
    if (to_device) bring_pages_in(destination, bytes);
    std::memmove(pointer(destination), pointer(source), bytes);
    return std::vector{cost};
  });
  // A GPU copies pageable memory through a buffer of the driver's, so the call returns when that is done.
  const bool staged = (!to->on_device && !to->pinned) || (!from->on_device && !from->pinned);
  if (result == kSuccess && (wait == Wait::kYes || staged)) {
    stream->drain();
    state.clock.program_reached(stream->done_ns());
  }
  return result;
}

template <class Value>
Result fill(State& state, uint64_t destination, Value value, uint64_t count, Stream handle, Wait wait) {
  const auto stream = state.find_stream(handle);
  if (!stream) return kInvalidHandle;
  if (count == 0) return kSuccess;
  if (destination % sizeof(Value) != 0 || count > std::numeric_limits<uint64_t>::max() / sizeof(Value)) {
    return kInvalidValue;
  }
  const uint64_t bytes = count * sizeof(Value);
  const auto to = find_end(state, destination, bytes, kAccessReadWrite, Side::kDevice);
  if (!to) return kInvalidValue;
  const Cost cost{Engine::kWithin, to->device, bytes, state.config.bandwidth.device};
  const Result result = state.submit(handle, [=] {
    std::fill_n(static_cast<Value*>(pointer(destination)), count, value);
    return std::vector{cost};
  });
  if (result == kSuccess && wait == Wait::kYes) {
    stream->drain();
    state.clock.program_reached(stream->done_ns());
  }
  return result;
}

}  // namespace

STANDIN_FUNCTION(cuMemcpy, DevicePointer destination, DevicePointer source, size_t bytes) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kAny, source, Side::kAny, bytes, nullptr, Wait::kYes);
}

STANDIN_FUNCTION(cuMemcpyAsync, DevicePointer destination, DevicePointer source, size_t bytes, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kAny, source, Side::kAny, bytes, stream, Wait::kNo);
}

STANDIN_FUNCTION(cuMemcpyHtoD_v2, DevicePointer destination, const void* source, size_t bytes) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kDevice, address_of(source), Side::kHost, bytes, nullptr,
              Wait::kYes);
}

STANDIN_FUNCTION(cuMemcpyHtoDAsync_v2, DevicePointer destination, const void* source, size_t bytes, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kDevice, address_of(source), Side::kHost, bytes, stream,
              Wait::kNo);
}

STANDIN_FUNCTION(cuMemcpyDtoH_v2, void* destination, DevicePointer source, size_t bytes) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, address_of(destination), Side::kHost, source, Side::kDevice, bytes, nullptr,
              Wait::kYes);
}

STANDIN_FUNCTION(cuMemcpyDtoHAsync_v2, void* destination, DevicePointer source, size_t bytes, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, address_of(destination), Side::kHost, source, Side::kDevice, bytes, stream,
              Wait::kNo);
}

STANDIN_FUNCTION(cuMemcpyDtoD_v2, DevicePointer destination, DevicePointer source, size_t bytes) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kDevice, source, Side::kDevice, bytes, nullptr, Wait::kYes);
}

STANDIN_FUNCTION(cuMemcpyDtoDAsync_v2, DevicePointer destination, DevicePointer source, size_t bytes, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return copy(*state, context->device, destination, Side::kDevice, source, Side::kDevice, bytes, stream, Wait::kNo);
}

STANDIN_FUNCTION(cuMemcpyPeerAsync, DevicePointer destination, Context destination_context, DevicePointer source,
                 Context source_context, size_t bytes, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  if (state->find_context(destination_context) == nullptr || state->find_context(source_context) == nullptr) {
    return kInvalidContext;
  }
  return copy(*state, context->device, destination, Side::kDevice, source, Side::kDevice, bytes, stream, Wait::kNo);
}

STANDIN_FUNCTION(cuMemsetD8_v2, DevicePointer destination, unsigned char value, size_t count) {
  STANDIN_ENTER_CONTEXT();
  return fill<uint8_t>(*state, destination, value, count, nullptr, Wait::kYes);
}

STANDIN_FUNCTION(cuMemsetD32_v2, DevicePointer destination, unsigned value, size_t count) {
  STANDIN_ENTER_CONTEXT();
  return fill<uint32_t>(*state, destination, value, count, nullptr, Wait::kYes);
}

STANDIN_FUNCTION(cuMemsetD8Async, DevicePointer destination, unsigned char value, size_t count, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return fill<uint8_t>(*state, destination, value, count, stream, Wait::kNo);
}

STANDIN_FUNCTION(cuMemsetD32Async, DevicePointer destination, unsigned value, size_t count, Stream stream) {
  STANDIN_ENTER_CONTEXT();
  return fill<uint32_t>(*state, destination, value, count, stream, Wait::kNo);
}
