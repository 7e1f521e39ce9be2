// One piece of GPU memory: made, written, exported as a descriptor, read by another process, and let go.
#pragma once
#include <cstdint>

#include "native/copy/gpu.h"

namespace baton::probe {

struct RoundTrip {
  uint64_t bytes = 0;
  // What was done last: all of it when `status` is good.
  const char* stage = "";
  Status status;
};

// The other process maps it on GPU `reader`. Ends within about 20 s, unless the driver hangs in this process.
RoundTrip round_trip(const Gpu& gpu, int32_t reader);

}  // namespace baton::probe
