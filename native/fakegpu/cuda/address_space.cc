// DeviceMemory: addresses.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#include "native/fakegpu/common/export.h"
#include "native/fakegpu/cuda/device_memory.h"

namespace baton::standin {
namespace {

void* pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);
}  // NOLINT(performance-no-int-to-ptr)

// Addresses without memory. Neither they nor what is mapped there later is for children: a fork that kept a
// mapping would keep released memory alive.
bool make_inaccessible(uint64_t address, uint64_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap(pointer(address), bytes, PROT_NONE, flags, -1, 0) != MAP_FAILED &&
         madvise(pointer(address), bytes, MADV_DONTFORK) == 0;
}

cuda::Result complain_of_mappings(const char* what) {
  const int error = errno;
  complain(std::string(what) + ": " + std::strerror(error) +
           (error == ENOMEM ? " (a process may have 65,530 mappings: use fewer, larger segments)" : ""));
  return cuda::kOutOfMemory;
}

int protection(cuda::AccessFlags access) {
  switch (access) {
    case cuda::kAccessRead:
      return PROT_READ;
    case cuda::kAccessReadWrite:
      return PROT_READ | PROT_WRITE;
    default:
      return PROT_NONE;
  }
}

}  // namespace

cuda::Result DeviceMemory::reserve(uint64_t bytes, uint64_t alignment, uint64_t wish, uint64_t* address) {
  alignment = std::max(alignment, granularity());
  if (bytes == 0 || bytes % granularity() != 0 || (alignment & (alignment - 1)) != 0) return cuda::kInvalidValue;
  if (bytes > std::numeric_limits<uint64_t>::max() / 4 || alignment > bytes + (uint64_t{1} << 40U)) {
    return cuda::kInvalidValue;
  }
  const std::lock_guard lock(mutex_);
  // More than is needed, of which the aligned part is kept. A wish is only that.
  const uint64_t span = bytes + alignment;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* mapped = mmap(wish % alignment == 0 ? pointer(wish) : nullptr, span, PROT_NONE, flags, -1, 0);
  if (mapped == MAP_FAILED) return complain_of_mappings("no addresses");
  const auto raw = reinterpret_cast<uint64_t>(mapped);
  const uint64_t begin = (raw + alignment - 1) / alignment * alignment;
  if (begin > raw) munmap(mapped, begin - raw);
  if (raw + span > begin + bytes) munmap(pointer(begin + bytes), raw + span - begin - bytes);
  madvise(pointer(begin), bytes, MADV_DONTFORK);
  reservations_.emplace(begin, bytes);
  *address = begin;
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::free_address(uint64_t address, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = reservations_.find(address);
  if (found == reservations_.end() || found->second != bytes) return cuda::kInvalidValue;
  const auto mapping = mappings_.lower_bound(address);
  if (mapping != mappings_.end() && mapping->first < address + bytes) return cuda::kInvalidValue;
  munmap(pointer(address), bytes);
  reservations_.erase(found);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::map(uint64_t address, uint64_t bytes, cuda::AllocationHandle handle) {
  const std::lock_guard lock(mutex_);
  const auto physical = physical_.find(handle);
  if (physical == physical_.end() || bytes == 0 || bytes > physical->second.hold.bytes) return cuda::kInvalidValue;
  if (address % granularity() != 0 || bytes % granularity() != 0) return cuda::kInvalidValue;
  if (!in_one_reservation(address, bytes)) return cuda::kInvalidValue;
  const auto next = mappings_.lower_bound(address);
  if (next != mappings_.end() && next->first < address + bytes) return cuda::kAlreadyMapped;
  if (mapping_around(address) != mappings_.end()) return cuda::kAlreadyMapped;

  if (mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, physical->second.fd, 0) == MAP_FAILED) {
    return complain_of_mappings("memory cannot be mapped");
  }
  madvise(pointer(address), bytes, MADV_DONTFORK);
  // No reclaim order is kept for these pages: noting each one as used makes unmapping them twice as slow.
  madvise(pointer(address), bytes, MADV_RANDOM);
  ++physical->second.references;
  mappings_.emplace(address, Mapping{bytes, handle, physical->second.hold.device, {}});
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::unmap(uint64_t address, uint64_t bytes) {
  Unreferenced unreferenced;
  {
    const std::lock_guard lock(mutex_);
    const auto covering = exactly_covering(address, bytes);
    if (covering.empty()) return cuda::kInvalidValue;
    if (!make_inaccessible(address, bytes)) return complain_of_mappings("memory cannot be unmapped");
    for (const auto& mapping : covering) {
      drop_reference(mapping->second.handle, &unreferenced);
      mappings_.erase(mapping);
    }
  }
  give_back(unreferenced);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::set_access(uint64_t address, uint64_t bytes, const cuda::AccessDescriptor* descriptors,
                                      size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const auto& [location, flags] = descriptors[i];
    const bool known = flags == cuda::kAccessNone || flags == cuda::kAccessRead || flags == cuda::kAccessReadWrite;
    if (location.type != cuda::kLocationDevice || !known) return cuda::kInvalidValue;
    if (location.id < 0 || static_cast<uint32_t>(location.id) >= table_.devices()) return cuda::kInvalidDevice;
  }
  const std::lock_guard lock(mutex_);
  const auto covering = exactly_covering(address, bytes);
  if (covering.empty()) return cuda::kInvalidValue;
  for (const auto& mapping : covering) {
    for (size_t i = 0; i < count; ++i) {
      mapping->second.access[static_cast<uint32_t>(descriptors[i].location.id)] = descriptors[i].flags;
    }
    // One page has one protection for the whole process, so what one GPU may do, all of them can.
    if (mprotect(pointer(mapping->first), mapping->second.bytes, protection(widest(mapping->second))) != 0) {
      return complain_of_mappings("access cannot be set");
    }
  }
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::get_access(uint64_t address, uint32_t device, cuda::AccessFlags* access) {
  const std::lock_guard lock(mutex_);
  const auto mapping = mapping_around(address);
  if (mapping == mappings_.end()) return cuda::kInvalidValue;
  const auto found = mapping->second.access.find(device);
  *access = found != mapping->second.access.end() ? found->second : cuda::kAccessNone;
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::allocate(uint32_t device, uint64_t bytes, uint64_t* address) {
  if (bytes == 0 || bytes > std::numeric_limits<uint64_t>::max() / 4) return cuda::kInvalidValue;
  bytes = (bytes + granularity() - 1) / granularity() * granularity();
  cuda::AllocationHandle handle = 0;
  if (const auto result = create(device, bytes, false, &handle); result != cuda::kSuccess) return result;
  std::vector<cuda::AccessDescriptor> everyone;
  for (uint32_t peer = 0; peer < table_.devices(); ++peer) {
    everyone.push_back({{cuda::kLocationDevice, static_cast<int32_t>(peer)}, cuda::kAccessReadWrite});
  }
  auto result = reserve(bytes, 0, 0, address);
  if (result == cuda::kSuccess) {
    result = map(*address, bytes, handle);
    if (result == cuda::kSuccess) result = set_access(*address, bytes, everyone.data(), everyone.size());
    if (result != cuda::kSuccess) {
      unmap(*address, bytes);
      free_address(*address, bytes);
    }
  }
  release(handle);  // the mapping keeps it
  if (result != cuda::kSuccess) return result;
  const std::lock_guard lock(mutex_);
  allocations_.emplace(*address, bytes);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::free_allocation(uint64_t address) {
  uint64_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = allocations_.find(address);
    if (found == allocations_.end()) return cuda::kInvalidValue;
    bytes = found->second;
    allocations_.erase(found);
  }
  if (const auto result = unmap(address, bytes); result != cuda::kSuccess) return result;
  return free_address(address, bytes);
}

Place DeviceMemory::find(uint64_t address, uint64_t bytes, cuda::AccessFlags needed) {
  const std::lock_guard lock(mutex_);
  const auto above = reservations_.upper_bound(address);
  const auto reservation = above == reservations_.begin() ? reservations_.end() : std::prev(above);
  if (reservation == reservations_.end() || address >= reservation->first + reservation->second) {
    // A range that starts in the host's memory and runs into a GPU's is no range.
    const bool runs_into = above != reservations_.end() && above->first - address < bytes;
    return {runs_into ? Place::Kind::kUnmapped : Place::Kind::kOther, 0};
  }
  const auto first = mapping_around(address);
  if (first == mappings_.end() || bytes > std::numeric_limits<uint64_t>::max() - address) {
    return {Place::Kind::kUnmapped, 0};
  }
  Place place{Place::Kind::kMapped, first->second.device};
  uint64_t covered_end = address;
  for (auto mapping = first; covered_end < address + bytes; ++mapping) {
    const bool follows = mapping != mappings_.end() && (mapping == first || mapping->first == covered_end);
    if (!follows) return {Place::Kind::kUnmapped, 0};
    if ((widest(mapping->second) & needed) != needed) place.kind = Place::Kind::kForbidden;
    covered_end = mapping->first + mapping->second.bytes;
  }
  return place;
}

std::optional<MappedRange> DeviceMemory::mapping_at(uint64_t address) {
  const std::lock_guard lock(mutex_);
  const auto mapping = mapping_around(address);
  if (mapping == mappings_.end()) return std::nullopt;
  return MappedRange{mapping->first, mapping->second.bytes, mapping->second.device, widest(mapping->second)};
}

bool DeviceMemory::reserved(uint64_t address) {
  const std::lock_guard lock(mutex_);
  return in_one_reservation(address, 1);
}

bool DeviceMemory::in_one_reservation(uint64_t address, uint64_t bytes) const {
  const auto above = reservations_.upper_bound(address);
  if (above == reservations_.begin()) return false;
  const auto& [begin, reserved_bytes] = *std::prev(above);
  return address - begin < reserved_bytes && bytes <= reserved_bytes - (address - begin);
}

std::vector<DeviceMemory::Mappings::iterator> DeviceMemory::exactly_covering(uint64_t address, uint64_t bytes) {
  std::vector<Mappings::iterator> covering;
  uint64_t covered_end = address;
  for (auto mapping = mappings_.find(address);
       mapping != mappings_.end() && mapping->first == covered_end && covered_end - address < bytes; ++mapping) {
    covering.push_back(mapping);
    covered_end += mapping->second.bytes;
  }
  if (covered_end - address != bytes) covering.clear();
  return covering;
}

DeviceMemory::Mappings::iterator DeviceMemory::mapping_around(uint64_t address) {
  const auto above = mappings_.upper_bound(address);
  if (above == mappings_.begin()) return mappings_.end();
  const auto mapping = std::prev(above);
  return address - mapping->first < mapping->second.bytes ? mapping : mappings_.end();
}

cuda::AccessFlags DeviceMemory::widest(const Mapping& mapping) {
  cuda::AccessFlags widest = cuda::kAccessNone;
  for (const auto& [device, flags] : mapping.access)
    widest = std::max(widest, flags);
  return widest;
}

}  // namespace baton::standin
