#include "native/fakegpu/cuda/stream.h"

#include <algorithm>
#include <utility>

namespace baton::standin {

void StreamQueue::submit(Work work) {
  enqueue({std::move(work), nullptr, clock_.program_ns()});
}

void StreamQueue::record(std::shared_ptr<Recording> recording) {
  enqueue({nullptr, std::move(recording), clock_.program_ns()});
}

void StreamQueue::enqueue(Queued queued) {
  const std::lock_guard lock(mutex_);
  if (lazy_) {
    queue_.push_back(std::move(queued));
  } else {
    run(queued);
  }
}

void StreamQueue::run(Queued& queued) {
  const uint64_t ready_ns = std::max(done_ns_, queued.submitted_ns);
  done_ns_ = queued.work ? clock_.finish(ready_ns, queued.work()) : ready_ns;
  if (queued.recording) {
    queued.recording->done_ns = done_ns_;
    queued.recording->done = true;
  }
}

void StreamQueue::wait_until(uint64_t ns) {
  const std::lock_guard lock(mutex_);
  done_ns_ = std::max(done_ns_, ns);
}

void StreamQueue::drain() {
  const std::lock_guard lock(mutex_);
  for (; !queue_.empty(); queue_.pop_front())
    run(queue_.front());
}

bool StreamQueue::advance() {
  const std::lock_guard lock(mutex_);
  if (queue_.empty()) return true;
  run(queue_.front());
  queue_.pop_front();
  return false;
}

uint64_t StreamQueue::done_ns() {
  const std::lock_guard lock(mutex_);
  return done_ns_;
}

}  // namespace baton::standin
