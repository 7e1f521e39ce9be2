#include "native/copy/checksum_items.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "native/copy/device_buffer.h"
#include "native/copy/kernel_module.h"
#include "native/copy/kernels.h"

namespace baton::copy {
namespace {

constexpr uint64_t kPiecesPerBatch = 16 * 1024;
constexpr uint64_t kSumsBytes = kPiecesPerBatch * sizeof(uint64_t);
constexpr uint64_t kScratchBytes = kSumsBytes + kPiecesPerBatch * sizeof(ChecksumPiece);

struct Scratch {
  std::mutex mutex;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<DeviceBuffer> buffer;  // sums, then pieces
};

Scratch& scratch_of(const Gpu& gpu) {
  static std::mutex mutex;
  static auto& all = *new std::map<const Gpu*, std::unique_ptr<Scratch>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Scratch>& scratch = all[&gpu];
  if (!scratch) scratch = std::make_unique<Scratch>();
  return *scratch;
}

Status prepare(const Gpu& gpu, Scratch& scratch) {
  if (!scratch.stream) {
    BATON_ASSIGN(Stream stream, Stream::create(gpu));
    scratch.stream = std::make_unique<Stream>(std::move(stream));
  }
  if (!scratch.buffer) {
    BATON_ASSIGN(DeviceBuffer buffer, DeviceBuffer::create(gpu, kScratchBytes));
    scratch.buffer = std::make_unique<DeviceBuffer>(std::move(buffer));
  }
  return {};
}

// Pieces that fit the scratch buffer. Their groups are numbered within the batch, so that it has room for as many
// sums as pieces, however many groups there are.
class Batch {
 public:
  Batch(const Gpu& gpu, const KernelModule& kernels, const Scratch& scratch, bool indices_only,
        std::span<uint64_t> sums)
      : gpu_(gpu), kernels_(kernels), scratch_(scratch), indices_only_(indices_only), sums_(sums) {}

  Status add(ChecksumPiece piece) {
    if (groups_.empty() || groups_.back() != piece.group) groups_.push_back(piece.group);
    piece.group = static_cast<uint32_t>(groups_.size() - 1);
    pieces_.push_back(piece);
    return pieces_.size() == kPiecesPerBatch ? run() : Status{};
  }

  Status run() {
    if (pieces_.empty()) return {};
    const cuda::CudaDriver& driver = gpu_.driver();
    const Stream& stream = *scratch_.stream;
    const DeviceBuffer& buffer = *scratch_.buffer;
    BATON_TRY(driver.cuMemsetD8Async(buffer.address(), 0, groups_.size() * sizeof(uint64_t), stream.get()));
    BATON_TRY(driver.cuMemcpyHtoDAsync(buffer.address() + kSumsBytes, pieces_.data(),
                                       pieces_.size() * sizeof(ChecksumPiece), stream.get()));
    const ChecksumItemsParameters parameters{buffer.as<const ChecksumPiece>(kSumsBytes), buffer.as<uint64_t>(),
                                             pieces_.size(), indices_only_ ? 1U : 0U, 0};
    BATON_TRY(kernels_.checksum_items(parameters, stream));
    std::vector<uint64_t> found(groups_.size());
    BATON_TRY(driver.cuMemcpyDtoHAsync(found.data(), buffer.address(), found.size() * sizeof(uint64_t), stream.get()));
    BATON_TRY(stream.synchronize());
    for (size_t i = 0; i < groups_.size(); ++i)
      sums_[groups_[i]] += found[i];
    pieces_.clear();
    groups_.clear();
    return {};
  }

 private:
  const Gpu& gpu_;
  const KernelModule& kernels_;
  const Scratch& scratch_;
  bool indices_only_;
  std::span<uint64_t> sums_;
  std::vector<ChecksumPiece> pieces_;
  std::vector<uint32_t> groups_;  // the caller's number of each group in the batch
};

Status check(const ChecksumItem& item, uint64_t groups) {
  const bool width =
      item.element_bytes == 1 || item.element_bytes == 2 || item.element_bytes == 4 || item.element_bytes == 8;
  if (width && item.group < groups) return {};
  return Error{
      .code = "INVALID_ARGUMENT",
      .message = "A checksum item is not usable.",
      .expected = "element_bytes 1, 2, 4 or 8 and a group below " + std::to_string(groups),
      .found = "element_bytes " + std::to_string(item.element_bytes) + " and group " + std::to_string(item.group),
      .action = "Give the tensor's element size and the index of its sum.",
      .driver_result = std::nullopt};
}

}  // namespace

Status checksum_items(const Gpu& gpu, std::span<const ChecksumItem> items, bool indices_only,
                      std::span<uint64_t> sums) {
  for (const ChecksumItem& item : items)
    BATON_TRY(check(item, sums.size()));
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  BATON_ASSIGN(const KernelModule* kernels, KernelModule::of(gpu));
  Scratch& scratch = scratch_of(gpu);
  const std::lock_guard lock(scratch.mutex);
  BATON_TRY(prepare(gpu, scratch));
  BATON_TRY(gpu.driver().cuCtxSynchronize());

  std::fill(sums.begin(), sums.end(), 0);
  Batch batch(gpu, *kernels, scratch, indices_only, sums);
  for (const ChecksumItem& item : items) {
    const uint64_t most = kChecksumPieceBytes / item.element_bytes;
    for (uint64_t done = 0; done < item.elements;) {
      const uint64_t elements = std::min(most, item.elements - done);
      BATON_TRY(batch.add({item.address + done * item.element_bytes, item.first_element + done,
                           static_cast<uint32_t>(elements), item.element_bytes, item.group, 0}));
      done += elements;
    }
  }
  return batch.run();
}

}  // namespace baton::copy
