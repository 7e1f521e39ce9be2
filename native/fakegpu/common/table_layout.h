// How the shared table lies in its file. Private to table.cc and its tests.
#pragma once

#include <atomic>
#include <cstdint>

#include "native/fakegpu/common/table.h"

namespace baton::standin {

inline constexpr uint64_t kTableMagic = 0x3247424e4f544142;  // "BATONBG2"
inline constexpr uint32_t kMostHandles = 1 << 15;
inline constexpr uint32_t kMostHolders = 1 << 16;

inline constexpr uint32_t kHandleExported = 1;
inline constexpr uint32_t kHandleContext = 2;

struct Table::Header {
  std::atomic<uint64_t> magic;  // stored last: the rest is there when it is
  uint32_t devices;
  uint32_t most_handles;
  uint64_t bytes_per_device;
  uint64_t granularity_bytes;
  uint64_t context_bytes;
  std::atomic<uint64_t> next_id;
  // Stored before the first change under the lock, so a figure taken under the lock is true while this has not moved.
  std::atomic<uint64_t> changes;
  // When somebody last looked for descriptors that alone keep memory alive, on the monotonic clock.
  std::atomic<int64_t> descriptors_seen_ns;
  // No record at or after these places is in use.
  std::atomic<uint32_t> handles_end;
  std::atomic<uint32_t> holders_end;
};

struct Table::HandleRecord {
  std::atomic<uint64_t> id;  // 0: free. Stored last when made
  uint64_t bytes;
  MemoryFile file;
  uint32_t device;
  std::atomic<uint32_t> flags;
};

struct Table::HolderRecord {
  std::atomic<uint64_t> handle_id;  // 0: free. Stored last when made
  ProcessId process;
  uint32_t handle_slot;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace baton::standin
