// The speed model: how long the work would take on real hardware. Nothing sleeps.
//
// A GPU has engines that work at once, each at a stated bandwidth: one copies to the host, one from it, one moves
// bytes within the GPU (copies, fills, kernels), one reads from other GPUs. Work starts when what went before it in
// its stream is done, its engine is free, and the program had submitted it; two streams on one engine share it.
// Each process has a clock of its own, so processes do not slow each other down in the model.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

#include "native/fakegpu/common/config.h"

namespace baton::standin {

enum class Engine { kToDevice, kToHost, kWithin, kPeer };

struct Cost {
  Engine engine = Engine::kWithin;
  uint32_t device = 0;
  uint64_t bytes = 0;
  double bytes_per_second = 0;
};

class ModelClock {
 public:
  // When the program, as far as it has waited for work, is.
  uint64_t program_ns() const;
  // The program has waited for something that was done at `ns`.
  void program_reached(uint64_t ns);
  // When work is done that could start at `ready_ns`.
  uint64_t finish(uint64_t ready_ns, const std::vector<Cost>& costs);

 private:
  mutable std::mutex mutex_;
  uint64_t program_ns_ = 0;
  std::array<std::array<uint64_t, kMostDevices>, 4> engine_free_ns_{};
};

}  // namespace baton::standin
