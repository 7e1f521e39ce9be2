#include "native/copy/checksum_items.h"

#include <algorithm>
#include <array>
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
// While the GPU works on one batch the next is made, and started behind it: the GPU never waits for the CPU.
constexpr size_t kBatches = 2;

struct Scratch {
  std::mutex mutex;
  std::array<std::unique_ptr<Stream>, kBatches> streams;
  // One allocation, because each takes a whole granule of the device: for each batch its sums, then its pieces.
  std::unique_ptr<DeviceBuffer> buffer;
};

// One batch's share of the scratch.
struct Slot {
  const Stream& stream;
  uint64_t sums;
  uint64_t pieces;
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
  for (auto& stream : scratch.streams) {
    if (stream) continue;
    BATON_ASSIGN(Stream made, Stream::create(gpu));
    stream = std::make_unique<Stream>(std::move(made));
  }
  if (!scratch.buffer) {
    BATON_ASSIGN(DeviceBuffer buffer, DeviceBuffer::create(gpu, kBatches * kScratchBytes));
    scratch.buffer = std::make_unique<DeviceBuffer>(std::move(buffer));
  }
  return {};
}

Slot slot_of(const Scratch& scratch, size_t index) {
  const uint64_t begin = scratch.buffer->address() + index * kScratchBytes;
  return {*scratch.streams[index], begin, begin + kSumsBytes};
}

// Pieces that fit a slot's buffer. Their groups are numbered within the batch, so that it has room for as many sums as
// pieces, however many groups there are.
class Batch {
 public:
  Batch(const Gpu& gpu, const KernelModule& kernels, Slot slot, bool indices_only, std::span<uint64_t> sums)
      : gpu_(gpu), kernels_(kernels), slot_(slot), indices_only_(indices_only), sums_(sums) {}

  // A failure elsewhere must not leave a kernel that works on this memory.
  ~Batch() {
    if (started_) static_cast<void>(slot_.stream.synchronize());
  }

  bool full() const { return pieces_.size() == kPiecesPerBatch; }

  void add(ChecksumPiece piece) {
    if (groups_.empty() || groups_.back() != piece.group) groups_.push_back(piece.group);
    piece.group = static_cast<uint32_t>(groups_.size() - 1);
    pieces_.push_back(piece);
  }

  Status start() {
    if (pieces_.empty()) return {};
    const cuda::CudaDriver& driver = gpu_.driver();
    const Stream& stream = slot_.stream;
    started_ = true;
    BATON_TRY(driver.cuMemsetD8Async(slot_.sums, 0, groups_.size() * sizeof(uint64_t), stream.get()));
    BATON_TRY(
        driver.cuMemcpyHtoDAsync(slot_.pieces, pieces_.data(), pieces_.size() * sizeof(ChecksumPiece), stream.get()));
    const ChecksumItemsParameters parameters{reinterpret_cast<const ChecksumPiece*>(slot_.pieces),
                                             reinterpret_cast<uint64_t*>(slot_.sums), pieces_.size(),
                                             indices_only_ ? 1U : 0U, 0};
    return kernels_.checksum_items(parameters, stream);
  }

  // Waits, adds the sums up and makes the batch empty.
  Status collect() {
    if (!started_) return {};
    started_ = false;
    std::vector<uint64_t> found(groups_.size());
    BATON_TRY(
        gpu_.driver().cuMemcpyDtoHAsync(found.data(), slot_.sums, found.size() * sizeof(uint64_t), slot_.stream.get()));
    BATON_TRY(slot_.stream.synchronize());
    for (size_t i = 0; i < groups_.size(); ++i)
      sums_[groups_[i]] += found[i];
    pieces_.clear();
    groups_.clear();
    return {};
  }

 private:
  const Gpu& gpu_;
  const KernelModule& kernels_;
  Slot slot_;
  bool indices_only_;
  std::span<uint64_t> sums_;
  bool started_ = false;
  std::vector<ChecksumPiece> pieces_;
  std::vector<uint32_t> groups_;  // the caller's number of each group in the batch
};

Status check(const ChecksumItem& item, uint64_t groups) {
  const bool width =
      item.element_bytes == 1 || item.element_bytes == 2 || item.element_bytes == 4 || item.element_bytes == 8;
  const bool conversion =
      item.conversion == Conversion::kNone ||
      (item.conversion == Conversion::kRounded && item.element_bytes == 4 && item.address % sizeof(uint32_t) == 0);
  if (width && conversion && item.group < groups) return {};
  return Error{
      .code = "INVALID_ARGUMENT",
      .message = "A checksum item is not usable.",
      .expected =
          "element_bytes 1, 2, 4 or 8, conversion 0 (or 1, of float32) and a group below " + std::to_string(groups),
      .found = "element_bytes " + std::to_string(item.element_bytes) + ", conversion " +
               std::to_string(static_cast<unsigned>(item.conversion)) + " and group " + std::to_string(item.group),
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
  std::array<Batch, kBatches> batches{Batch(gpu, *kernels, slot_of(scratch, 0), indices_only, sums),
                                      Batch(gpu, *kernels, slot_of(scratch, 1), indices_only, sums)};
  size_t current_batch = 0;
  for (const ChecksumItem& item : items) {
    const uint64_t most = kChecksumPieceBytes / item.element_bytes;
    for (uint64_t done = 0; done < item.elements;) {
      const uint64_t elements = std::min(most, item.elements - done);
      batches[current_batch].add({item.address + done * item.element_bytes, item.first_element + done,
                                  static_cast<uint32_t>(elements), item.element_bytes, item.group, item.conversion, 0});
      done += elements;
      if (!batches[current_batch].full()) continue;
      BATON_TRY(batches[current_batch].start());
      current_batch = (current_batch + 1) % kBatches;
      BATON_TRY(batches[current_batch].collect());
    }
  }
  BATON_TRY(batches[current_batch].start());
  for (Batch& batch : batches)
    BATON_TRY(batch.collect());
  return {};
}

}  // namespace baton::copy
