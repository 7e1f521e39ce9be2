#include "native/fakegpu/cuda/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

namespace baton::standin {
namespace {

void* pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);
}  // NOLINT(performance-no-int-to-ptr)

uint64_t page_bytes() {
  static const auto bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// msync looks at every page's mapping and writes nothing for MS_ASYNC.
bool is_mapped(uint64_t begin, uint64_t bytes) {
  const uint64_t first = begin / page_bytes() * page_bytes();
  return msync(pointer(first), begin + bytes - first, MS_ASYNC) == 0;
}

}  // namespace

cuda::Result HostMemory::register_range(uint64_t begin, uint64_t bytes) {
  const bool sensible = begin != 0 && bytes != 0 && bytes <= std::numeric_limits<uint64_t>::max() - begin;
  if (!sensible || !is_mapped(begin, bytes)) return cuda::kInvalidValue;
  return add(begin, bytes, false);
}

cuda::Result HostMemory::add(uint64_t begin, uint64_t bytes, bool allocated) {
  const std::lock_guard lock(mutex_);
  const auto next = ranges_.lower_bound(begin);
  if (next != ranges_.end() && next->first < begin + bytes) return cuda::kHostMemoryAlreadyRegistered;
  if (next != ranges_.begin()) {
    const auto& [before, registered] = *std::prev(next);
    if (before + registered.bytes > begin) return cuda::kHostMemoryAlreadyRegistered;
  }
  ranges_.emplace(begin, Registered{bytes, allocated});
  return cuda::kSuccess;
}

cuda::Result HostMemory::unregister_range(uint64_t begin) {
  const std::lock_guard lock(mutex_);
  const auto found = ranges_.find(begin);
  if (found == ranges_.end() || found->second.allocated) return cuda::kHostMemoryNotRegistered;
  ranges_.erase(found);
  return cuda::kSuccess;
}

cuda::Result HostMemory::allocate(uint64_t bytes, uint64_t* begin) {
  if (bytes == 0) return cuda::kInvalidValue;
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return cuda::kOutOfMemory;
  *begin = reinterpret_cast<uint64_t>(mapped);
  return add(*begin, bytes, true);
}

cuda::Result HostMemory::free(uint64_t begin) {
  uint64_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(begin);
    if (found == ranges_.end() || !found->second.allocated) return cuda::kInvalidValue;
    bytes = found->second.bytes;
    ranges_.erase(found);
  }
  munmap(pointer(begin), bytes);
  return cuda::kSuccess;
}

std::optional<HostRange> HostMemory::find(uint64_t address) {
  const std::lock_guard lock(mutex_);
  const auto above = ranges_.upper_bound(address);
  if (above == ranges_.begin()) return std::nullopt;
  const auto& [begin, registered] = *std::prev(above);
  if (address - begin >= registered.bytes) return std::nullopt;
  return HostRange{begin, registered.bytes};
}

bool HostMemory::pinned(uint64_t address, uint64_t bytes) {
  const auto range = find(address);
  return range && bytes <= range->begin + range->bytes - address;
}

}  // namespace baton::standin
