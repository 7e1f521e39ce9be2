#include "native/copy/kernel_module.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "native/copy/kernels.h"

// BATON_KERNELS_PTX is the path of kernels.ptx, given by the build. A zero byte ends it, as the driver wants.
__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    ".type baton_kernels_ptx, @object\n"
    "baton_kernels_ptx:\n"
    ".incbin \"" BATON_KERNELS_PTX
    "\"\n"
    ".byte 0\n"
    ".size baton_kernels_ptx, . - baton_kernels_ptx\n"
    ".previous\n");
extern "C" __attribute__((visibility("hidden"))) const char baton_kernels_ptx[];

namespace baton::copy {
namespace {

// Blocks of 512 threads on each multiprocessor: enough warps to hide the latency of memory, here or over NVLink.
constexpr uint32_t kBlocksPerMultiprocessor = 8;

}  // namespace

Result<const KernelModule*> KernelModule::of(const Gpu& gpu) {
  static std::mutex mutex;
  static auto& modules = *new std::map<const Gpu*, const KernelModule*>;
  const std::lock_guard lock(mutex);
  if (const auto found = modules.find(&gpu); found != modules.end()) return found->second;

  const cuda::CudaDriver& driver = gpu.driver();
  std::unique_ptr<KernelModule> kernels(new KernelModule(gpu));
  int multiprocessors = 0;
  BATON_TRY(driver.cuDeviceGetAttribute(&multiprocessors, cuda::kAttributeMultiprocessorCount, gpu.device()));
  kernels->most_blocks_ = static_cast<uint32_t>(std::max(multiprocessors, 1)) * kBlocksPerMultiprocessor;
  cuda::Module module = nullptr;
  BATON_TRY(driver.cuModuleLoadData(&module, baton_kernels_ptx));
  BATON_TRY(driver.cuModuleGetFunction(&kernels->copy_runs_, module, kCopyRunsKernel));
  BATON_TRY(driver.cuModuleGetFunction(&kernels->copy_range_, module, kCopyRangeKernel));
  BATON_TRY(driver.cuModuleGetFunction(&kernels->checksum_items_, module, kChecksumItemsKernel));
  const KernelModule* loaded = kernels.release();
  modules.emplace(&gpu, loaded);
  return loaded;
}

Status KernelModule::launch(cuda::Function function, uint64_t pieces, void* parameters, const Stream& stream) const {
  if (pieces == 0) return {};
  constexpr uint64_t kWarpsPerBlock = kBlockThreads / kWarpThreads;
  const uint64_t wanted = (pieces + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const auto blocks = static_cast<unsigned>(std::min<uint64_t>(wanted, most_blocks_));
  void* kernel_parameters[] = {parameters};
  return gpu_.driver().cuLaunchKernel(function, blocks, 1, 1, kBlockThreads, 1, 1, 0, stream.get(), kernel_parameters,
                                      nullptr);
}

}  // namespace baton::copy
