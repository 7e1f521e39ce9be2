#include "native/fakegpu/cuda/model_clock.h"

#include <algorithm>
#include <cmath>

namespace baton::standin {

uint64_t ModelClock::program_ns() const {
  const std::lock_guard lock(mutex_);
  return program_ns_;
}

void ModelClock::program_reached(uint64_t ns) {
  const std::lock_guard lock(mutex_);
  program_ns_ = std::max(program_ns_, ns);
}

uint64_t ModelClock::finish(uint64_t ready_ns, const std::vector<Cost>& costs) {
  const std::lock_guard lock(mutex_);
  uint64_t now_ns = ready_ns;
  for (const Cost& cost : costs) {
    uint64_t& free_ns = engine_free_ns_[static_cast<size_t>(cost.engine)][cost.device];
    const double seconds = static_cast<double>(cost.bytes) / cost.bytes_per_second;
    now_ns = std::max(now_ns, free_ns) + static_cast<uint64_t>(std::llround(seconds * 1e9));
    free_ns = now_ns;
  }
  return now_ns;
}

}  // namespace baton::standin
