// Reads the memory of every device at a steady rate, in a thread of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "native/driver/nvml.h"

namespace baton::monitor {

struct SamplerOptions {
  double hz = 1000;         // memory totals a second
  double process_hz = 2;    // process lists a second; 0: none
  size_t capacity = 65536;  // samples kept until they are drained
};

// What was seen last. A device that did not answer is unknown.
struct Snapshot {
  uint64_t time_ns = 0;  // CLOCK_MONOTONIC
  std::vector<std::optional<nvml::DeviceMemory>> devices;
  std::vector<std::optional<std::vector<nvml::ProcessMemory>>> processes;
};

struct Peak {
  uint64_t used_bytes = 0;
  uint64_t time_ns = 0;
};

// Samples in order of time; used_bytes[sample * devices + device], NaN when the device did not answer.
struct Series {
  std::vector<uint64_t> times_ns;
  std::vector<double> used_bytes;
  uint64_t dropped = 0;  // overwritten before they were drained
};

struct Cost {
  uint64_t samples = 0;
  uint64_t late = 0;     // ticks skipped because the one before took too long
  uint64_t cpu_ns = 0;   // of the thread
  uint64_t wall_ns = 0;  // since the start
};

class Sampler {
 public:
  // There is one sample when this returns.
  Sampler(std::shared_ptr<const nvml::Nvml> nvml, const SamplerOptions& options);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  Snapshot latest() const;
  std::vector<std::optional<Peak>> peaks() const;
  void reset_peaks();
  Series drain();
  Cost cost() const;
  // Waits for the thread, but not for a driver that hangs: then the thread ends by itself when the driver answers.
  void stop();

 private:
  struct State;
  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace baton::monitor
