// Streams and events. In eager mode work runs when it is submitted; in lazy mode it waits in its stream until
// somebody waits for it, which is as late as a GPU may run it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "native/fakegpu/cuda/model_clock.h"

namespace baton::standin {

// Does the work and says what it would cost.
using Work = std::function<std::vector<Cost>()>;

// One recording of an event.
struct Recording {
  std::atomic<bool> done = false;
  std::atomic<uint64_t> done_ns = 0;  // of the model's clock
};

class StreamQueue {
 public:
  StreamQueue(uint32_t device, bool non_blocking, bool lazy, ModelClock& clock)
      : device_(device), non_blocking_(non_blocking), lazy_(lazy), clock_(clock) {}

  uint32_t device() const { return device_; }
  bool non_blocking() const { return non_blocking_; }

  void submit(Work work);
  // As soon as what is queued before it is done.
  void record(std::shared_ptr<Recording> recording);
  // Work queued from now on starts after that moment.
  void wait_until(uint64_t ns);
  // Runs all that is queued.
  void drain();
  // Runs one piece of what is queued; true when nothing is left.
  bool advance();
  // The model's time when all that ran is done.
  uint64_t done_ns();

 private:
  struct Queued {
    Work work;  // empty: only the recording
    std::shared_ptr<Recording> recording;
    uint64_t submitted_ns = 0;
  };
  void enqueue(Queued queued);
  void run(Queued& queued);

  const uint32_t device_;
  const bool non_blocking_;
  const bool lazy_;
  ModelClock& clock_;
  std::mutex mutex_;
  std::deque<Queued> queue_;
  uint64_t done_ns_ = 0;
};

struct EventRecord {
  explicit EventRecord(bool is_timed) : timed(is_timed) {}
  const bool timed;
  std::mutex mutex;
  std::shared_ptr<Recording> recording;  // the last one; nullptr: never recorded
  std::weak_ptr<StreamQueue> stream;     // where it was recorded
};

}  // namespace baton::standin
