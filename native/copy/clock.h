// Monotonic time for reports.
#pragma once
#include <chrono>
#include <cstdint>

namespace baton {

inline uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

}  // namespace baton
