// What the stand-in GPUs are, from the environment:
//
//   BATON_STANDIN_TABLE          file shared by all processes that see the same GPUs; needed
//   BATON_STANDIN_DEVICES        how many GPUs          } needed by the process that creates the table; one that
//   BATON_STANDIN_BYTES          memory of each         } comes later may leave them out, or must agree
//   BATON_STANDIN_GRANULARITY    of allocations and mappings; default 2097152
//   BATON_STANDIN_CONTEXT_BYTES  what a process's context takes on each GPU that it uses; default 0
//   BATON_STANDIN_BANDWIDTH      of the speed model, in 10^9 bytes/s: pinned=54,pageable=1.5,device=2150,peer=397
//   BATON_STANDIN_ASYNC          "eager" (default): work is done when it is submitted. "lazy": as late as a GPU
//                                may do it, when somebody waits for it, so that a missing wait shows
//   BATON_STANDIN_FAULTS         see faults.h
//   BATON_STANDIN_ROLE           name of this process for faults by role
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace baton::standin {

// All bytes per second.
struct Bandwidth {
  double pinned = 54e9;     // between a GPU and registered host memory, each way
  double pageable = 1.5e9;  // and any other host memory
  double device = 2150e9;   // within a GPU
  double peer = 397e9;      // between two GPUs
};

struct Config {
  std::string table;
  std::optional<uint32_t> devices;
  std::optional<uint64_t> bytes_per_device;
  std::optional<uint64_t> granularity_bytes;
  std::optional<uint64_t> context_bytes;
  Bandwidth bandwidth;
  bool lazy = false;
  bool peers = true;  // GPUs may read each other's memory
};

inline constexpr uint64_t kDefaultGranularityBytes = 2 << 20;
inline constexpr uint32_t kMostDevices = 64;

// Reads the environment. On failure nullopt, and *problem says which variable is wrong and how.
std::optional<Config> read_config(std::string* problem);

}  // namespace baton::standin
