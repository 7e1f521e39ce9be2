// What torch.cuda.memory.CUDAPluggableAllocator calls: blocks of a pool for PyTorch's caching allocator on CUDA.
#include <atomic>

#include "native/capi/guard.h"
#include "native/copy/gpu.h"
#include "native/pool/pool.h"

using baton::Status;
using baton::capi::guarded;
using baton::capi::required;

namespace {

// PyTorch sub-allocates what it gets, and aligns its own blocks to this.
constexpr uint64_t kAlignment = 512;

std::atomic<baton_pool*> torch_pool{nullptr};

// PyTorch gives memory back as if to cudaFree, which waits for the device: work that was queued before may still use
// it, and the pool hands it out again to whoever asks next, on any stream.
Status wait_for_device(int32_t device) {
  BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
  const baton::CurrentContext current(*gpu);
  BATON_TRY(current.status());
  return gpu->driver().cuCtxSynchronize();
}

}  // namespace

baton_status baton_torch_cuda_install(baton_pool* pool) {
  return guarded([&]() -> Status {
    BATON_TRY(required({pool}));
    baton_pool* none = nullptr;
    if (torch_pool.compare_exchange_strong(none, pool)) return {};
    return baton::Error{.code = "SECOND_TRAINING_MEMORY",
                        .message = "PyTorch's allocations lead to a pool already.",
                        .expected = "one such pool a process",
                        .found = "a second one",
                        .action = "Use baton.training_memory(), which returns the same one each time.",
                        .driver_result = std::nullopt};
  });
}

// A null pointer tells PyTorch that memory is out; it frees what it caches and asks again.
void* baton_torch_cuda_malloc(ssize_t bytes, int, void*) {
  uint64_t address = 0;
  if (bytes <= 0) return nullptr;
  if (baton_pool_allocate(torch_pool.load(), static_cast<uint64_t>(bytes), kAlignment, &address) != 0) return nullptr;
  return reinterpret_cast<void*>(static_cast<uintptr_t>(address));
}

void baton_torch_cuda_free(void* block, ssize_t, int device, void*) {
  if (block == nullptr) return;
  guarded([&]() -> Status {
    BATON_TRY(wait_for_device(device));
    return {};
  });
  baton_pool_free(torch_pool.load(), reinterpret_cast<uintptr_t>(block));
}
