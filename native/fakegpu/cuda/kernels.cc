#include "native/fakegpu/cuda/kernels.h"

#include <algorithm>
#include <array>
#include <map>

#include "native/copy/kernels_host.h"

namespace baton::standin {
namespace {

// Bytes read from each GPU's memory. Neighbouring pieces mostly lie in one mapping, so that is looked at first.
class BytesByDevice {
 public:
  explicit BytesByDevice(const KernelContext& context) : context_(context) {}

  void add(uint64_t address, uint64_t bytes) {
    if (address - last_.begin >= last_.bytes) {
      last_ = context_.memory.mapping_at(address).value_or(
          MappedRange{.begin = address, .bytes = 1, .device = context_.device});
    }
    bytes_[last_.device] += bytes;
  }

  std::vector<Cost> costs() const {
    std::vector<Cost> costs;
    for (const auto& [device, bytes] : bytes_) {
      const bool local = device == context_.device;
      costs.push_back({local ? Engine::kWithin : Engine::kPeer, context_.device, bytes,
                       local ? context_.bandwidth.device : context_.bandwidth.peer});
    }
    return costs;
  }

 private:
  const KernelContext& context_;
  MappedRange last_;
  std::map<uint32_t, uint64_t> bytes_;
};

void run_copy(const void* parameter) {
  copy::copy_runs_on_host(*static_cast<const copy::CopyRunsParameters*>(parameter));
}

std::vector<Cost> cost_of_copy(const KernelContext& context, const void* parameter) {
  const auto& copy = *static_cast<const copy::CopyRunsParameters*>(parameter);
  BytesByDevice bytes(context);
  for (uint64_t i = 0; i < copy.count; ++i) {
    const copy::CopyPiece& piece = copy.pieces[i];
    bytes.add(copy.bases[piece.slot] + piece.src_offset, piece.bytes);
  }
  return bytes.costs();
}

void run_copy_range(const void* parameter) {
  copy::copy_range_on_host(*static_cast<const copy::CopyRangeParameters*>(parameter));
}

std::vector<Cost> cost_of_copy_range(const KernelContext& context, const void* parameter) {
  const auto& copy = *static_cast<const copy::CopyRangeParameters*>(parameter);
  if (context.host.pinned(copy.source, copy.bytes)) {
    return {{Engine::kToDevice, context.device, copy.bytes, context.bandwidth.pinned}};
  }
  BytesByDevice bytes(context);
  bytes.add(copy.source, copy.bytes);
  return bytes.costs();
}

void run_checksum(const void* parameter) {
  copy::checksum_items_on_host(*static_cast<const copy::ChecksumItemsParameters*>(parameter));
}

std::vector<Cost> cost_of_checksum(const KernelContext& context, const void* parameter) {
  const auto& checksum = *static_cast<const copy::ChecksumItemsParameters*>(parameter);
  BytesByDevice bytes(context);
  if (checksum.indices_only != 0) return {};
  for (uint64_t i = 0; i < checksum.count; ++i) {
    const copy::ChecksumPiece& piece = checksum.pieces[i];
    bytes.add(piece.address, uint64_t{piece.elements} * piece.element_bytes);
  }
  return bytes.costs();
}

constexpr std::array kKernels = {
    Kernel{copy::kCopyRunsKernel, sizeof(copy::CopyRunsParameters), run_copy, cost_of_copy},
    Kernel{copy::kCopyRangeKernel, sizeof(copy::CopyRangeParameters), run_copy_range, cost_of_copy_range},
    Kernel{copy::kChecksumItemsKernel, sizeof(copy::ChecksumItemsParameters), run_checksum, cost_of_checksum},
};

}  // namespace

const Kernel* find_kernel(std::string_view name) {
  const auto* found =
      std::find_if(kKernels.begin(), kKernels.end(), [&](const Kernel& kernel) { return name == kernel.name; });
  return found != kKernels.end() ? found : nullptr;
}

std::vector<std::string> entries_of_ptx(std::string_view text) {
  constexpr std::string_view kDirective = ".entry";
  std::vector<std::string> names;
  for (size_t at = text.find(kDirective); at != std::string_view::npos; at = text.find(kDirective, at)) {
    at += kDirective.size();
    const size_t begin = text.find_first_not_of(" \t\r\n", at);
    if (begin == std::string_view::npos || begin == at) continue;
    const size_t end = text.find_first_of(" \t\r\n(", begin);
    names.emplace_back(text.substr(begin, end == std::string_view::npos ? end : end - begin));
  }
  return names;
}

}  // namespace baton::standin
