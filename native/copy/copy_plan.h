// Many copies as one kernel launch: runs of (source, destination, bytes), planned once and executed often.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "native/copy/device_buffer.h"
#include "native/copy/gpu.h"
#include "native/copy/kernel_module.h"
#include "native/copy/kernels.h"

namespace baton::copy {

// Copies from the base of `slot` + src_offset; `bytes` are those that are written at dst. Bases are multiples of 16.
struct Run {
  uint32_t slot;
  uint64_t src_offset;
  uint64_t dst;
  uint64_t bytes;
  Conversion conversion = Conversion::kNone;
};

struct CopyReport {
  uint64_t bytes;  // written
  uint64_t runs;
  uint64_t total_ns;
  uint64_t simulated_ns;  // UINT64_MAX on a real GPU
};

// The runs as a kernel takes them: in the order of destinations, neighbours joined, cut into pieces that one warp
// copies and that (but for a run's first and last) begin at multiples of 16 bytes of the destination.
// Two runs that write the same bytes are an error (COPY_RUNS_OVERLAP), unless they are the same run. So are conversions
// of parts of elements (INVALID_ARGUMENT).
Result<std::vector<CopyPiece>> pieces_of(std::span<const Run> runs);

class CopyPlan {
 public:
  static Result<std::unique_ptr<CopyPlan>> create(const Gpu& gpu, std::span<const Run> runs);

  // Waits for what this process has under way on the GPU, copies, and waits for the copies.
  // `bases`: the address of each slot, for this execution.
  Result<CopyReport> execute(std::span<const uint64_t> bases);

 private:
  CopyPlan(const Gpu& gpu, const KernelModule& kernels, Stream stream)
      : gpu_(gpu), kernels_(kernels), stream_(std::move(stream)) {}

  const Gpu& gpu_;
  const KernelModule& kernels_;
  Stream stream_;
  std::mutex executing_;
  uint64_t runs_ = 0;
  uint64_t bytes_ = 0;
  uint64_t pieces_ = 0;
  uint64_t slots_ = 0;                   // the highest that a run names, plus one
  std::unique_ptr<DeviceBuffer> table_;  // bases, then pieces
};

}  // namespace baton::copy
