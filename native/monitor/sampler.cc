#include "native/monitor/sampler.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>

namespace baton::monitor {
namespace {

using Clock = std::chrono::steady_clock;  // CLOCK_MONOTONIC
using std::chrono::nanoseconds;

// How long stop() waits for a driver call that is under way; they take microseconds.
constexpr std::chrono::milliseconds kStopWait{200};

uint64_t to_ns(Clock::time_point time) {
  return static_cast<uint64_t>(std::chrono::duration_cast<nanoseconds>(time.time_since_epoch()).count());
}

uint64_t thread_cpu_ns() {
  timespec used{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<uint64_t>(used.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(used.tv_nsec);
}

nanoseconds period_of(double hz) {
  return nanoseconds(static_cast<int64_t>(1e9 / hz));
}

}  // namespace

// Shared with the thread, which may outlive the Sampler while a driver call hangs.
struct Sampler::State {
  State(std::shared_ptr<const nvml::Nvml> library, const SamplerOptions& sampler_options)
      : nvml(std::move(library)), options(sampler_options), device_count(nvml->device_count()) {
    snapshot.devices.resize(device_count);
    snapshot.processes.resize(device_count);
    peaks.resize(device_count);
    ring_times_ns.resize(options.capacity);
    ring_used_bytes.resize(options.capacity * device_count);
  }

  // The driver is asked without the lock, so that nobody who reads waits for it.
  void sample() {
    const uint64_t time_ns = to_ns(Clock::now());
    std::vector<std::optional<nvml::DeviceMemory>> devices(device_count);
    for (uint32_t i = 0; i < device_count; ++i) {
      if (auto memory = nvml->memory(i)) devices[i] = *memory;
    }
    const std::lock_guard lock(mutex);
    snapshot.time_ns = time_ns;
    const size_t slot = static_cast<size_t>(written % options.capacity);
    ring_times_ns[slot] = time_ns;
    for (uint32_t i = 0; i < device_count; ++i) {
      double used = std::numeric_limits<double>::quiet_NaN();
      if (devices[i]) {
        used = static_cast<double>(devices[i]->used_bytes);
        if (!peaks[i] || devices[i]->used_bytes > peaks[i]->used_bytes) peaks[i] = {devices[i]->used_bytes, time_ns};
      }
      ring_used_bytes[slot * device_count + i] = used;
    }
    snapshot.devices = std::move(devices);
    ++written;
    cpu_ns = thread_cpu_ns();
  }

  void list_processes() {
    for (uint32_t i = 0; i < device_count; ++i) {
      auto processes = nvml->processes(i);
      const std::lock_guard lock(mutex);
      if (processes) {
        snapshot.processes[i] = *std::move(processes);
      } else {
        snapshot.processes[i].reset();
      }
    }
  }

  void run() {
    const nanoseconds period = period_of(options.hz);
    Clock::time_point next = Clock::now() + period;
    Clock::time_point next_processes = Clock::now();
    for (;;) {
      if (options.process_hz > 0 && Clock::now() >= next_processes) {
        list_processes();
        next_processes = Clock::now() + period_of(options.process_hz);
      }
      {
        std::unique_lock lock(mutex);
        if (wake.wait_until(lock, next, [this] { return stopping; })) break;
      }
      sample();
      next += period;
      const Clock::time_point now = Clock::now();
      if (next < now) {
        // Caught up by leaving ticks out, never by a burst.
        const auto missed = (now - next) / period + 1;
        next += missed * period;
        const std::lock_guard lock(mutex);
        late += static_cast<uint64_t>(missed);
      }
    }
    const std::lock_guard lock(mutex);
    cpu_ns = thread_cpu_ns();
    ended_ns = to_ns(Clock::now());
    finished.notify_all();
  }

  const std::shared_ptr<const nvml::Nvml> nvml;
  const SamplerOptions options;
  const uint32_t device_count;
  const uint64_t started_ns = to_ns(Clock::now());

  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable finished;
  bool stopping = false;
  uint64_t ended_ns = 0;  // 0: still running
  Snapshot snapshot;
  std::vector<std::optional<Peak>> peaks;
  std::vector<uint64_t> ring_times_ns;
  std::vector<double> ring_used_bytes;
  uint64_t written = 0;
  uint64_t drained = 0;
  uint64_t late = 0;
  uint64_t cpu_ns = 0;
};

Sampler::Sampler(std::shared_ptr<const nvml::Nvml> nvml, const SamplerOptions& options)
    : state_(std::make_shared<State>(std::move(nvml), options)) {
  state_->sample();
  thread_ = std::thread([state = state_] { state->run(); });
}

Sampler::~Sampler() {
  stop();
}

void Sampler::stop() {
  if (!thread_.joinable()) return;
  bool ended = false;
  {
    std::unique_lock lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_all();
    ended = state_->finished.wait_for(lock, kStopWait, [this] { return state_->ended_ns != 0; });
  }
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

Snapshot Sampler::latest() const {
  const std::lock_guard lock(state_->mutex);
  return state_->snapshot;
}

std::vector<std::optional<Peak>> Sampler::peaks() const {
  const std::lock_guard lock(state_->mutex);
  return state_->peaks;
}

void Sampler::reset_peaks() {
  const std::lock_guard lock(state_->mutex);
  // What is in use now is the lowest that the next peak can be.
  for (uint32_t i = 0; i < state_->device_count; ++i) {
    const auto& memory = state_->snapshot.devices[i];
    state_->peaks[i].reset();
    if (memory) state_->peaks[i] = Peak{memory->used_bytes, state_->snapshot.time_ns};
  }
}

Series Sampler::drain() {
  const std::lock_guard lock(state_->mutex);
  State& state = *state_;
  const uint64_t kept = std::min<uint64_t>(state.written - state.drained, state.options.capacity);
  Series series;
  series.dropped = state.written - state.drained - kept;
  series.times_ns.reserve(kept);
  series.used_bytes.reserve(kept * state.device_count);
  for (uint64_t i = state.written - kept; i < state.written; ++i) {
    const size_t slot = static_cast<size_t>(i % state.options.capacity);
    series.times_ns.push_back(state.ring_times_ns[slot]);
    const auto used = state.ring_used_bytes.begin() + static_cast<ptrdiff_t>(slot * state.device_count);
    series.used_bytes.insert(series.used_bytes.end(), used, used + state.device_count);
  }
  state.drained = state.written;
  return series;
}

Cost Sampler::cost() const {
  const std::lock_guard lock(state_->mutex);
  const uint64_t now = state_->ended_ns != 0 ? state_->ended_ns : to_ns(Clock::now());
  return Cost{
      .samples = state_->written, .late = state_->late, .cpu_ns = state_->cpu_ns, .wall_ns = now - state_->started_ns};
}

}  // namespace baton::monitor
