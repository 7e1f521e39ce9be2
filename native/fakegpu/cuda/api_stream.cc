// libcuda of the stand-in: streams and events.
#include "native/fakegpu/cuda/state.h"

using namespace baton::cuda;     // NOLINT(google-build-using-namespace)
using namespace baton::standin;  // NOLINT(google-build-using-namespace)

namespace {

// Waits for one recording; the program's time in the model moves on to it.
Result wait_for(State& state, EventRecord& event) {
  std::shared_ptr<Recording> recording;
  std::shared_ptr<StreamQueue> stream;
  {
    const std::lock_guard lock(event.mutex);
    recording = event.recording;
    stream = event.stream.lock();
  }
  if (!recording) return kSuccess;  // never recorded: nothing to wait for
  if (!recording->done && stream) stream->drain();
  state.clock.program_reached(recording->done_ns);
  return kSuccess;
}

}  // namespace

STANDIN_FUNCTION(cuStreamCreate, Stream* stream, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  if (stream == nullptr || (flags != kStreamDefault && flags != kStreamNonBlocking)) return kInvalidValue;
  *stream = state->add_stream(context->device, flags == kStreamNonBlocking);
  return kSuccess;
}

STANDIN_FUNCTION(cuStreamCreateWithPriority, Stream* stream, unsigned flags, int priority) {
  (void)priority;
  return cuStreamCreate(stream, flags);
}

STANDIN_FUNCTION(cuStreamDestroy_v2, Stream stream) {
  STANDIN_ENTER(kAnyDevice);
  return state->remove_stream(stream);
}

STANDIN_FUNCTION(cuStreamSynchronize, Stream handle) {
  STANDIN_ENTER_CONTEXT();
  const auto stream = state->find_stream(handle);
  if (!stream) return kInvalidHandle;
  stream->drain();
  state->clock.program_reached(stream->done_ns());
  return kSuccess;
}

STANDIN_FUNCTION(cuStreamQuery, Stream handle) {
  STANDIN_ENTER_CONTEXT();
  const auto stream = state->find_stream(handle);
  if (!stream) return kInvalidHandle;
  if (!stream->advance()) return kNotReady;
  state->clock.program_reached(stream->done_ns());
  return kSuccess;
}

STANDIN_FUNCTION(cuStreamWaitEvent, Stream handle, Event event_handle, unsigned flags) {
  STANDIN_ENTER(kAnyDevice);
  (void)flags;
  const auto stream = state->find_stream(handle);
  const auto event = state->find_event(event_handle);
  if (!stream || !event) return kInvalidHandle;
  std::shared_ptr<Recording> recording;
  std::shared_ptr<StreamQueue> recorded_in;
  {
    const std::lock_guard lock(event->mutex);
    recording = event->recording;
    recorded_in = event->stream.lock();
  }
  if (!recording) return kSuccess;
  // Running what the event stands for now is one of the orders that a GPU may choose.
  if (!recording->done && recorded_in && recorded_in != stream) recorded_in->drain();
  if (recording->done) stream->wait_until(recording->done_ns);
  return kSuccess;
}

STANDIN_FUNCTION(cuLaunchHostFunc, Stream stream, HostFunction function, void* user_data) {
  STANDIN_ENTER_CONTEXT();
  if (function == nullptr) return kInvalidValue;
  return state->submit(stream, [=]() -> std::vector<Cost> {
    function(user_data);
    return {};
  });
}

STANDIN_FUNCTION(cuEventCreate, Event* event, unsigned flags) {
  STANDIN_ENTER_CONTEXT();
  if (event == nullptr) return kInvalidValue;
  *event = state->add_event((flags & kEventDisableTiming) == 0);
  return kSuccess;
}

STANDIN_FUNCTION(cuEventDestroy_v2, Event event) {
  STANDIN_ENTER(kAnyDevice);
  return state->remove_event(event);
}

STANDIN_FUNCTION(cuEventRecord, Event event_handle, Stream handle) {
  STANDIN_ENTER_CONTEXT();
  const auto stream = state->find_stream(handle);
  const auto event = state->find_event(event_handle);
  if (!stream || !event) return kInvalidHandle;
  const auto recording = std::make_shared<Recording>();
  {
    const std::lock_guard lock(event->mutex);
    event->recording = recording;
    event->stream = stream;
  }
  stream->record(recording);
  return kSuccess;
}

STANDIN_FUNCTION(cuEventSynchronize, Event event_handle) {
  STANDIN_ENTER(kAnyDevice);
  const auto event = state->find_event(event_handle);
  if (!event) return kInvalidHandle;
  return wait_for(*state, *event);
}

STANDIN_FUNCTION(cuEventQuery, Event event_handle) {
  STANDIN_ENTER(kAnyDevice);
  const auto event = state->find_event(event_handle);
  if (!event) return kInvalidHandle;
  std::shared_ptr<Recording> recording;
  std::shared_ptr<StreamQueue> stream;
  {
    const std::lock_guard lock(event->mutex);
    recording = event->recording;
    stream = event->stream.lock();
  }
  if (!recording) return kSuccess;
  if (!recording->done) {
    if (stream) stream->advance();
    return kNotReady;
  }
  state->clock.program_reached(recording->done_ns);
  return kSuccess;
}

STANDIN_FUNCTION(cuEventElapsedTime_v2, float* milliseconds, Event start_handle, Event end_handle) {
  STANDIN_ENTER(kAnyDevice);
  if (milliseconds == nullptr) return kInvalidValue;
  const auto start = state->find_event(start_handle);
  const auto end = state->find_event(end_handle);
  if (!start || !end || !start->timed || !end->timed) return kInvalidHandle;
  const auto recording_of = [](EventRecord& event) {
    const std::lock_guard lock(event.mutex);
    return event.recording;
  };
  const auto from = recording_of(*start);
  const auto to = recording_of(*end);
  if (!from || !to) return kInvalidHandle;
  if (!from->done || !to->done) return kNotReady;
  const auto difference_ns = static_cast<int64_t>(to->done_ns.load() - from->done_ns.load());
  *milliseconds = static_cast<float>(static_cast<double>(difference_ns) / 1e6);
  return kSuccess;
}

STANDIN_FUNCTION(cuEventElapsedTime, float* milliseconds, Event start, Event end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}

// The model's clock of a stream, in ns; all ones when there is no such stream. Taken before work is submitted and
// after it was waited for, the difference is what the work would take.
STANDIN_EXPORT uint64_t batonStandinSimulatedNs(Stream handle) {
  State* state = State::get();
  if (state == nullptr) return UINT64_MAX;
  const auto stream = state->find_stream(handle);
  if (!stream) return UINT64_MAX;
  return std::max(stream->done_ns(), state->clock.program_ns());
}
