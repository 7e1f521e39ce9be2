// The driver calls behind a segment: physical memory, and where it is mapped.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "native/copy/gpu.h"
#include "native/driver/error.h"
#include "native/pool/contents.h"

namespace baton::pool {

// What moves the bytes from the host: the GPU's copy engines, or its multiprocessors. The engines are faster and leave
// the others to kernels; but just after another process gave much memory back they are at half their speed (27 of
// 55 GB/s on an H100), since the driver clears that memory with them. A kernel is not slowed (51 GB/s).
enum class Restorer : uint8_t { kCopyEngine, kKernel };

// All functions need a current context.
class SegmentMemory {
 public:
  SegmentMemory(const Gpu& gpu, std::string owner, uint64_t segment_bytes, bool exportable)
      : gpu_(gpu), owner_(std::move(owner)), segment_bytes_(segment_bytes), exportable_(exportable) {}

  // Errors: OUT_OF_MEMORY (names the GPU, what was wanted, free and total bytes).
  Result<cuda::AllocationHandle> create() const;
  // Readable and writable by this GPU when it returns; nothing is mapped when it fails.
  Status map(uint64_t address, cuda::AllocationHandle handle) const;
  Status unmap(uint64_t address) const;
  Status release(cuda::AllocationHandle handle) const;

  // Starts bringing back what a segment held, to `address`, where it is mapped now. Adds the bytes copied.
  Status start_restore(const Contents& contents, uint64_t segment_begin, uint64_t address, Restorer restorer,
                       const Stream& stream, uint64_t& copied_bytes) const;

  uint64_t segment_bytes() const { return segment_bytes_; }

 private:
  Error out_of_memory() const;
  Status copy_from(const Arena& arena, const Extent& extent, uint64_t destination, Restorer restorer,
                   const Stream& stream) const;

  const Gpu& gpu_;
  std::string owner_;
  uint64_t segment_bytes_;
  bool exportable_;
};

}  // namespace baton::pool
