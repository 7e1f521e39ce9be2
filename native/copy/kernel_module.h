// The kernels of kernels.cu, loaded into a GPU's context from the PTX inside this library.
#pragma once
#include "native/copy/gpu.h"
#include "native/copy/kernels.h"

namespace baton::copy {

class KernelModule {
 public:
  // Loaded by the first call and kept: the driver translates the PTX once per process.
  static Result<const KernelModule*> of(const Gpu& gpu);

  // One warp per piece, as many blocks as the GPU can keep busy. `parameters` is one of kernels.h's structures.
  template <typename Parameters>
  Status copy_runs(const Parameters& parameters, const Stream& stream) const {
    return launch(copy_runs_, parameters.count, const_cast<Parameters*>(&parameters), stream);
  }
  // From host memory that is registered, or within the GPU.
  Status copy_range(CopyRangeParameters parameters, const Stream& stream) const {
    return launch(copy_range_, (parameters.bytes + kCopyPieceBytes - 1) / kCopyPieceBytes, &parameters, stream);
  }
  template <typename Parameters>
  Status checksum_items(const Parameters& parameters, const Stream& stream) const {
    return launch(checksum_items_, parameters.count, const_cast<Parameters*>(&parameters), stream);
  }

 private:
  explicit KernelModule(const Gpu& gpu) : gpu_(gpu) {}
  Status launch(cuda::Function function, uint64_t pieces, void* parameters, const Stream& stream) const;

  const Gpu& gpu_;
  cuda::Function copy_runs_ = nullptr;
  cuda::Function copy_range_ = nullptr;
  cuda::Function checksum_items_ = nullptr;
  uint32_t most_blocks_ = 0;
};

}  // namespace baton::copy
