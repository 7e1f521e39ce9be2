// Host memory that the stand-in knows: registered, or allocated by cuMemHostAlloc. Nothing is locked into RAM
// (RLIMIT_MEMLOCK may be small); being registered only makes copies fast in the speed model.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>

#include "native/driver/cuda_abi.h"

namespace baton::standin {

struct HostRange {
  uint64_t begin = 0;
  uint64_t bytes = 0;
};

class HostMemory {
 public:
  cuda::Result register_range(uint64_t begin, uint64_t bytes);
  cuda::Result unregister_range(uint64_t begin);
  cuda::Result allocate(uint64_t bytes, uint64_t* begin);
  cuda::Result free(uint64_t begin);
  // The registered range around an address.
  std::optional<HostRange> find(uint64_t address);
  // Whether all of [address, address + bytes) is registered.
  bool pinned(uint64_t address, uint64_t bytes);

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Registered {
    uint64_t bytes = 0;
    bool allocated = false;  // by allocate(), so only free() takes it away
  };
  cuda::Result add(uint64_t begin, uint64_t bytes, bool allocated);

  std::mutex mutex_;
  std::map<uint64_t, Registered> ranges_;
};

}  // namespace baton::standin
