#include "native/fakegpu/cuda/state.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

namespace baton::standin {
namespace {

std::atomic<State*> initialised_state = nullptr;
std::atomic<bool> in_forked_child = false;

// nullptr on failure, which has been said.
State* create_state() {
  std::string problem;
  const auto config = read_config(&problem);
  if (!config) {
    complain(problem);
    return nullptr;
  }
  auto faults = faults_from_environment("nvml", &problem);
  if (!faults) {
    complain(problem);
    return nullptr;
  }
  auto table = Table::open(*config, &problem);
  if (!table) {
    complain(problem);
    return nullptr;
  }
  if (table->release_everything_of_this_process() != TableResult::kOk) return nullptr;
  // Kept for good: threads may still be in a call while the process ends.
  return new State(*config, std::move(table), std::move(*faults));
}

}  // namespace

State::State(const Config& config_in, std::unique_ptr<Table> table_in, Faults faults_in)
    : config(config_in), table(std::move(table_in)), faults(std::move(faults_in)), memory(*table) {
  for (uint32_t device = 0; device < kMostDevices; ++device)
    contexts_[device].device = device;
}

State* State::get() {
  if (in_forked_child.load(std::memory_order_relaxed)) return nullptr;
  return initialised_state.load(std::memory_order_acquire);
}

cuda::Result State::initialise() {
  static std::mutex mutex;
  if (in_forked_child) return cuda::kNotInitialized;
  const std::lock_guard lock(mutex);
  if (initialised_state != nullptr) return cuda::kSuccess;
  State* state = create_state();
  if (state == nullptr) return cuda::kInvalidValue;
  initialised_state = state;
  // After the table's, so that these locks are taken before its.
  pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  return cuda::kSuccess;
}

void State::before_fork() {
  if (State* state = get()) {
    state->mutex_.lock();
    state->memory.lock();
    state->host.lock();
  }
}

void State::after_fork_in_parent() {
  if (State* state = get()) {
    state->host.unlock();
    state->memory.unlock();
    state->mutex_.unlock();
  }
}

void State::after_fork_in_child() {
  if (State* state = get()) {
    state->memory.close_descriptors();
    state->host.unlock();
    state->memory.unlock();
    state->mutex_.unlock();
  }
  in_forked_child = true;
}

cuda::Result State::retain_context(uint32_t device, cuda::Context* context) {
  const std::lock_guard lock(mutex_);
  PrimaryContext& primary = contexts_[device];
  if (primary.retained == 0) {
    if (const auto added = table->add_context(device, &primary.hold); added != TableResult::kOk) {
      return added == TableResult::kLockTimeout ? cuda::kSystemNotReady : cuda::kOutOfMemory;
    }
    primary.default_stream = std::make_shared<StreamQueue>(device, false, config.lazy, clock);
  }
  ++primary.retained;
  *context = reinterpret_cast<cuda::Context>(&primary);
  return cuda::kSuccess;
}

cuda::Result State::release_context(uint32_t device) {
  const std::lock_guard lock(mutex_);
  PrimaryContext& primary = contexts_[device];
  if (primary.retained == 0) return cuda::kInvalidContext;
  if (--primary.retained > 0) return cuda::kSuccess;
  primary.default_stream->drain();
  primary.default_stream.reset();
  std::erase_if(streams_, [&](const auto& stream) { return stream.second->device() == device; });
  table->release(primary.hold, -1);
  return cuda::kSuccess;
}

bool State::context_active(uint32_t device) {
  const std::lock_guard lock(mutex_);
  return contexts_[device].retained > 0;
}

PrimaryContext* State::find_context(cuda::Context handle) {
  const std::lock_guard lock(mutex_);
  for (PrimaryContext& context : contexts_) {
    if (reinterpret_cast<cuda::Context>(&context) == handle) return context.retained > 0 ? &context : nullptr;
  }
  return nullptr;
}

std::vector<PrimaryContext*>& State::context_stack() {
  static thread_local std::vector<PrimaryContext*> stack;
  return stack;
}

PrimaryContext* State::current() {
  PrimaryContext* top = context_stack().empty() ? nullptr : context_stack().back();
  if (top == nullptr) return nullptr;
  const std::lock_guard lock(mutex_);
  return top->retained > 0 ? top : nullptr;
}

cuda::Stream State::add_stream(uint32_t device, bool non_blocking) {
  const std::lock_guard lock(mutex_);
  const auto handle = reinterpret_cast<cuda::Stream>(next_handle_++);  // NOLINT(performance-no-int-to-ptr)
  streams_.emplace(handle, std::make_shared<StreamQueue>(device, non_blocking, config.lazy, clock));
  return handle;
}

cuda::Result State::remove_stream(cuda::Stream stream) {
  std::shared_ptr<StreamQueue> removed;
  {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return cuda::kInvalidHandle;
    removed = found->second;
    streams_.erase(found);
  }
  removed->drain();  // destroying a stream does not drop its work
  return cuda::kSuccess;
}

std::shared_ptr<StreamQueue> State::find_stream(cuda::Stream stream) {
  constexpr uintptr_t kLegacyDefault = 1;
  constexpr uintptr_t kPerThreadDefault = 2;
  const auto value = reinterpret_cast<uintptr_t>(stream);
  if (value == 0 || value == kLegacyDefault || value == kPerThreadDefault) {
    PrimaryContext* context = current();
    const std::lock_guard lock(mutex_);
    return context != nullptr ? context->default_stream : nullptr;
  }
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(stream);
  return found != streams_.end() ? found->second : nullptr;
}

std::vector<std::shared_ptr<StreamQueue>> State::streams_of(uint32_t device) {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<StreamQueue>> found;
  if (contexts_[device].default_stream) found.push_back(contexts_[device].default_stream);
  for (const auto& [handle, stream] : streams_) {
    if (stream->device() == device) found.push_back(stream);
  }
  return found;
}

cuda::Event State::add_event(bool timed) {
  const std::lock_guard lock(mutex_);
  const auto handle = reinterpret_cast<cuda::Event>(next_handle_++);  // NOLINT(performance-no-int-to-ptr)
  events_.emplace(handle, std::make_shared<EventRecord>(timed));
  return handle;
}

cuda::Result State::remove_event(cuda::Event event) {
  const std::lock_guard lock(mutex_);
  return events_.erase(event) > 0 ? cuda::kSuccess : cuda::kInvalidHandle;
}

std::shared_ptr<EventRecord> State::find_event(cuda::Event event) {
  const std::lock_guard lock(mutex_);
  const auto found = events_.find(event);
  return found != events_.end() ? found->second : nullptr;
}

// The default stream waits for all blocking streams of its GPU, and they for it.
void State::order_before(const std::shared_ptr<StreamQueue>& stream) {
  if (stream->non_blocking()) return;
  std::shared_ptr<StreamQueue> default_stream;
  {
    const std::lock_guard lock(mutex_);
    default_stream = contexts_[stream->device()].default_stream;
  }
  const auto finish_first = [&](const std::shared_ptr<StreamQueue>& other) {
    other->drain();
    stream->wait_until(other->done_ns());
  };
  if (stream != default_stream) {
    if (default_stream) finish_first(default_stream);
    return;
  }
  for (const auto& other : streams_of(stream->device())) {
    if (other != stream && !other->non_blocking()) finish_first(other);
  }
}

cuda::Result State::submit(cuda::Stream handle, Work work) {
  const auto stream = find_stream(handle);
  if (!stream) return cuda::kInvalidHandle;
  order_before(stream);
  stream->submit(std::move(work));
  return cuda::kSuccess;
}

cuda::Result enter(State** out, const char* function, int32_t device) {
  State* state = State::get();
  if (state == nullptr) return cuda::kNotInitialized;
  *out = state;
  if (state->faults.empty()) return cuda::kSuccess;
  if (device == kAnyDevice) {
    if (const PrimaryContext* context = state->current()) device = static_cast<int32_t>(context->device);
  }
  const auto struck = state->faults.strike(function, device);
  return struck ? static_cast<cuda::Result>(*struck) : cuda::kSuccess;
}

cuda::Result enter_with_context(State** state, PrimaryContext** context, const char* function) {
  if (const auto refused = enter(state, function, kAnyDevice); refused != cuda::kSuccess) return refused;
  *context = (*state)->current();
  return *context != nullptr ? cuda::kSuccess : cuda::kInvalidContext;
}

bool valid_device(const State& state, int32_t device) {
  return device >= 0 && static_cast<uint32_t>(device) < state.table->devices();
}

}  // namespace baton::standin
