// What `baton-probe` can look at. Each writes lines of JSON to standard output (json.h); a driver's refusal is a line,
// not a failure.
#pragma once
#include <cstdint>

namespace baton::probe {

// NVML: GPUs, their memory, links and modes.
void probe_nvml();

// CUDA: GPUs, peer access, and for each GPU a round trip of memory that is made here and read by another process; and
// `register_bytes` of host memory pinned as an arena is.
void probe_cuda(uint64_t register_bytes);

// The other process of the round trip: maps the memory behind `fd` on GPU `ordinal` and compares it with the pattern.
// Exit status 0 when it is the same.
int import_and_compare(int32_t ordinal, int32_t fd, uint64_t bytes, uint32_t seed);

}  // namespace baton::probe
