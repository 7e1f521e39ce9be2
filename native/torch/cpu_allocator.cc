// PyTorch's CPU allocations from a pool, while it is open: how training state gets onto a stand-in GPU. Compiled
// against the installed torch at first use (python/src/baton/training/build.py), because torch has no stable C++ ABI.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>

#include "capi/baton.h"

namespace {

constexpr uint64_t kAlignment = 64;  // what torch's own CPU allocator promises

struct State {
  std::atomic<baton_pool*> pool{nullptr};
  std::atomic<bool> open{false};
  std::atomic<bool> forked{false};
  c10::Allocator* base = nullptr;
  c10::DeleterFnPtr base_deleter = nullptr;
};

// Never destroyed: tensors may be freed while the process ends.
State& state() {
  static State* instance = new State;
  return *instance;
}

// One deleter for both kinds of block: raw_deallocate() asks the allocator, not the block.
void release(void* block) {
  if (block == nullptr) return;
  State& self = state();
  baton_pool* pool = self.pool.load(std::memory_order_acquire);
  const auto address = reinterpret_cast<uint64_t>(block);
  if (pool == nullptr || baton_pool_owns(pool, address) == 0) {
    self.base_deleter(block);
    return;
  }
  // A forked child has none of the pool's memory, and a lock of the pool may have been held when it was forked.
  if (!self.forked.load(std::memory_order_relaxed)) baton_pool_free(pool, address);
}

class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    State& self = state();
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    if (!self.open.load(std::memory_order_acquire)) {
      void* block = self.base->raw_allocate(bytes);
      return {block, block, &release, device};
    }
    uint64_t address = 0;
    if (baton_pool_allocate(self.pool.load(std::memory_order_acquire), bytes, kAlignment, &address) != 0) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, "training memory: ", baton_last_error());
    }
    void* block = reinterpret_cast<void*>(static_cast<uintptr_t>(address));
    return {block, block, &release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* destination, const void* source, std::size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }
};

}  // namespace

// Makes this the CPU allocator of torch, over `pool`, closed. Once per process: returns -1 when it was done before.
extern "C" __attribute__((visibility("default"))) int32_t baton_torch_install(baton_pool* pool) {
  State& self = state();
  baton_pool* none = nullptr;
  if (pool == nullptr || !self.pool.compare_exchange_strong(none, pool)) return -1;
  self.base = c10::GetCPUAllocator();
  self.base_deleter = self.base->raw_deleter();
  pthread_atfork(nullptr, nullptr, [] {
    state().forked = true;
    state().open = false;
  });
  static PoolAllocator* allocator = new PoolAllocator;
  c10::SetCPUAllocator(allocator, /*priority=*/100);
  return 0;
}

// While open, the CPU allocations of all threads come from the pool.
extern "C" __attribute__((visibility("default"))) void baton_torch_open(int32_t open) {
  state().open.store(open != 0 && state().pool.load() != nullptr, std::memory_order_release);
}
