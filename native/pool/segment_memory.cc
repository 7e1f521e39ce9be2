#include "native/pool/segment_memory.h"

#include "native/copy/kernel_module.h"

namespace baton::pool {

Result<cuda::AllocationHandle> SegmentMemory::create() const {
  const auto& function = gpu_.driver().cuMemCreate;
  BATON_TRY(function.available());
  const cuda::AllocationProperties properties = gpu_.allocation(exportable_);
  cuda::AllocationHandle handle = 0;
  const cuda::Result result = function.raw(&handle, segment_bytes_, &properties, 0);
  if (result == cuda::kSuccess) return handle;
  if (result == cuda::kOutOfMemory) return out_of_memory();
  return function.error_of(result);
}

Error SegmentMemory::out_of_memory() const {
  std::string found = "an unknown number of bytes free";
  if (const auto memory = gpu_.memory()) {
    found = std::to_string(memory->free_bytes) + " of " + std::to_string(memory->total_bytes) + " bytes free";
  }
  return Error{.code = "OUT_OF_MEMORY",
               .message = gpu_.name() + " has no room for one more segment of pool '" + owner_ + "'.",
               .expected = std::to_string(segment_bytes_) + " bytes free on " + gpu_.name(),
               .found = found,
               .action = "Release memory on this GPU, or use a smaller model, batch or cache.",
               .driver_result = cuda::kOutOfMemory};
}

Status SegmentMemory::map(uint64_t address, cuda::AllocationHandle handle) const {
  BATON_TRY(gpu_.driver().cuMemMap(address, segment_bytes_, 0, handle, 0));
  const cuda::AccessDescriptor access = gpu_.access(cuda::kAccessReadWrite);
  Status status = gpu_.driver().cuMemSetAccess(address, segment_bytes_, &access, 1);
  if (!status) static_cast<void>(gpu_.driver().cuMemUnmap(address, segment_bytes_));
  return status;
}

Status SegmentMemory::unmap(uint64_t address) const {
  return gpu_.driver().cuMemUnmap(address, segment_bytes_);
}

Status SegmentMemory::release(cuda::AllocationHandle handle) const {
  return gpu_.driver().cuMemRelease(handle);
}

// By a copy engine too where kernels cannot read the host's memory, or there are none.
Status SegmentMemory::copy_from(const Arena& arena, const Extent& extent, uint64_t destination, Restorer restorer,
                                const Stream& stream) const {
  if (restorer == Restorer::kKernel) {
    const std::optional<uint64_t> source = arena.device_address(extent.offset);
    const auto kernels = copy::KernelModule::of(gpu_);
    if (source && kernels) return (*kernels)->copy_range({*source, destination, extent.bytes}, stream);
  }
  return gpu_.driver().cuMemcpyHtoDAsync(destination, arena.at(extent.offset), extent.bytes, stream.get());
}

Status SegmentMemory::start_restore(const Contents& contents, uint64_t segment_begin, uint64_t address,
                                    Restorer restorer, const Stream& stream, uint64_t& copied_bytes) const {
  const cuda::CudaDriver& driver = gpu_.driver();
  for (const auto& saved : contents.saved) {
    uint64_t destination = address + (saved->where().begin - segment_begin);
    for (const Extent& extent : saved->extents()) {
      BATON_TRY(copy_from(saved->arena(), extent, destination, restorer, stream));
      destination += extent.bytes;
      copied_bytes += extent.bytes;
    }
  }
  for (const Range& zero : contents.zeros) {
    BATON_TRY(driver.cuMemsetD8Async(address + (zero.begin - segment_begin), 0, zero.bytes(), stream.get()));
  }
  return {};
}

}  // namespace baton::pool
