#include "native/share/import.h"

#include <algorithm>
#include <string>

namespace baton::share {

Result<std::unique_ptr<Import>> Import::open(const Gpu& gpu, uint64_t segment_bytes, std::span<const uint64_t> segments,
                                             std::span<const int32_t> fds) {
  constexpr uint64_t kMostSegments = UINT64_C(1) << 32;
  const uint64_t highest = segments.empty() ? 0 : *std::max_element(segments.begin(), segments.end());
  if (segments.empty() || segments.size() != fds.size() || segment_bytes == 0 || highest >= kMostSegments) {
    return Error{.code = "INVALID_ARGUMENT",
                 .message = "The segments to import are not usable.",
                 .expected = "one descriptor for each of one or more segments, and their size",
                 .found = std::to_string(segments.size()) + " segments of " + std::to_string(segment_bytes) +
                          " bytes and " + std::to_string(fds.size()) + " descriptors",
                 .action = "Give what the exporting process said.",
                 .driver_result = std::nullopt};
  }
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  std::unique_ptr<Import> import(new Import(gpu, segment_bytes));
  cuda::DevicePointer base = 0;
  const uint64_t reserved_bytes = (highest + 1) * segment_bytes;
  BATON_TRY(gpu.driver().cuMemAddressReserve(&base, reserved_bytes, 0, 0, 0));
  import->base_ = base;
  import->reserved_bytes_ = reserved_bytes;
  for (size_t i = 0; i < segments.size(); ++i)
    BATON_TRY(import->map(segments[i], fds[i]));
  BATON_TRY(import->make_readable());
  return import;
}

Status Import::map(uint64_t segment, int32_t fd) {
  const cuda::CudaDriver& driver = gpu_.driver();
  const uint64_t address = base_ + segment * segment_bytes_;
  cuda::AllocationHandle handle = 0;
  // The driver takes the descriptor itself where a pointer is declared.
  BATON_TRY(driver.cuMemImportFromShareableHandle(&handle, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                                                  cuda::kHandlePosixFileDescriptor));
  const Status mapped = driver.cuMemMap(address, segment_bytes_, 0, handle, 0);
  // The mapping keeps the memory; the handle is not needed any more.
  const Status released = driver.cuMemRelease(handle);
  if (!mapped) return mapped;
  mapped_.push_back(segment);
  return released;
}

// One call for each run of neighbours: a call costs about as much as mapping a segment does, whatever its length.
Status Import::make_readable() {
  std::vector<uint64_t> sorted = mapped_;
  std::sort(sorted.begin(), sorted.end());
  const cuda::AccessDescriptor access = gpu_.access(cuda::kAccessRead);
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1)
      ++end;
    if (const Status made = gpu_.driver().cuMemSetAccess(base_ + sorted[begin] * segment_bytes_,
                                                         (end - begin) * segment_bytes_, &access, 1);
        !made) {
      return explained(made.error(), {sorted.data() + begin, end - begin});
    }
    begin = end;
  }
  return {};
}

Error Import::explained(Error error, std::span<const uint64_t> segments) const {
  const cuda::CudaDriver& driver = gpu_.driver();
  for (const uint64_t segment : segments) {
    cuda::AllocationHandle handle = 0;
    if (!driver.cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(base_ + segment * segment_bytes_)))
      continue;
    cuda::AllocationProperties properties{};
    int can = 1;
    const bool known = driver.cuMemGetAllocationPropertiesFromHandle(&properties, handle).ok();
    static_cast<void>(driver.cuMemRelease(handle));
    const cuda::Device other = properties.location.id;
    if (!known || other == gpu_.device()) continue;
    if (!driver.cuDeviceCanAccessPeer(&can, gpu_.device(), other) || can != 0) continue;
    return Error{.code = "NO_PEER_ACCESS",
                 .message = gpu_.name() + " cannot read the memory of GPU " + std::to_string(other) + ".",
                 .expected = "peer access between an engine's GPUs and those whose part of the weights it takes",
                 .found = "none: " + error.found,
                 .action = "See `nvidia-smi topo -p2p r`. ZeRO-1 and ZeRO-2 need none: each GPU has all parameters.",
                 .driver_result = error.driver_result};
  }
  return error;
}

Status Import::close() {
  if (base_ == 0) return {};
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  const cuda::CudaDriver& driver = gpu_.driver();
  Status first = driver.cuCtxSynchronize();
  const auto note = [&first](Status status) {
    if (first && !status) first = std::move(status);
  };
  for (const uint64_t segment : mapped_)
    note(driver.cuMemUnmap(base_ + segment * segment_bytes_, segment_bytes_));
  mapped_.clear();
  note(driver.cuMemAddressFree(base_, reserved_bytes_));
  base_ = 0;
  return first;
}

Import::~Import() {
  static_cast<void>(close());
}

}  // namespace baton::share
