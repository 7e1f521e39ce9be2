// Physical memory and addresses of the stand-in GPUs within this process: CUDA's virtual memory management on
// memfd and mmap. A reserved address that is not mapped, or mapped without access, faults when touched.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "native/driver/cuda_abi.h"
#include "native/fakegpu/common/table.h"

namespace baton::standin {

// What an address belongs to.
struct Place {
  enum class Kind { kOther, kMapped, kForbidden, kUnmapped };
  Kind kind = Kind::kOther;  // kForbidden: mapped without the access that was asked for
  uint32_t device = 0;       // of the physical memory at the first byte, when mapped
};

struct MappedRange {
  uint64_t begin = 0;
  uint64_t bytes = 0;
  uint32_t device = 0;
  cuda::AccessFlags access = cuda::kAccessNone;  // the widest that any device has
};

class DeviceMemory {
 public:
  explicit DeviceMemory(Table& table) : table_(table) {}

  cuda::Result reserve(uint64_t bytes, uint64_t alignment, uint64_t wish, uint64_t* address);
  cuda::Result free_address(uint64_t address, uint64_t bytes);

  cuda::Result create(uint32_t device, uint64_t bytes, bool exportable, cuda::AllocationHandle* handle);
  cuda::Result import(int fd, cuda::AllocationHandle* handle);
  cuda::Result export_to(cuda::AllocationHandle handle, int* fd);
  cuda::Result retain(uint64_t address, cuda::AllocationHandle* handle);
  cuda::Result release(cuda::AllocationHandle handle);
  cuda::Result properties(cuda::AllocationHandle handle, cuda::AllocationProperties* properties);

  cuda::Result map(uint64_t address, uint64_t bytes, cuda::AllocationHandle handle);
  cuda::Result unmap(uint64_t address, uint64_t bytes);
  cuda::Result set_access(uint64_t address, uint64_t bytes, const cuda::AccessDescriptor* descriptors, size_t count);
  cuda::Result get_access(uint64_t address, uint32_t device, cuda::AccessFlags* access);

  // cuMemAlloc: memory and address in one, readable and writable by every GPU of the process.
  cuda::Result allocate(uint32_t device, uint64_t bytes, uint64_t* address);
  cuda::Result free_allocation(uint64_t address);

  // Where [address, address + bytes) lies. It is kMapped only when all of it is mapped with that access.
  Place find(uint64_t address, uint64_t bytes, cuda::AccessFlags needed);
  std::optional<MappedRange> mapping_at(uint64_t address);
  // The whole reservation around an address, mapped or not.
  bool reserved(uint64_t address);

  // Around a fork. The child gives up its descriptors: one that stays open would keep memory that is released.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }
  void close_descriptors();

 private:
  struct Physical {
    Hold hold;
    int fd = -1;
    bool exportable = false;
    uint64_t references = 1;  // of the program, and of each mapping
  };
  struct Mapping {
    uint64_t bytes = 0;
    cuda::AllocationHandle handle = 0;
    uint32_t device = 0;
    std::map<uint32_t, cuda::AccessFlags> access;  // by device; absent: none
  };
  using Mappings = std::map<uint64_t, Mapping>;
  // Physical memory that nothing refers to any more; given back outside the mutex.
  using Unreferenced = std::vector<Physical>;

  uint64_t granularity() const { return table_.granularity_bytes(); }
  cuda::AllocationHandle add(Physical physical);
  void drop_reference(cuda::AllocationHandle handle, Unreferenced* unreferenced);
  void give_back(const Unreferenced& unreferenced);
  bool in_one_reservation(uint64_t address, uint64_t bytes) const;
  // The mappings that make up exactly [address, address + bytes); empty when none do.
  std::vector<Mappings::iterator> exactly_covering(uint64_t address, uint64_t bytes);
  Mappings::iterator mapping_around(uint64_t address);
  static cuda::AccessFlags widest(const Mapping& mapping);

  Table& table_;
  std::mutex mutex_;
  std::map<cuda::AllocationHandle, Physical> physical_;
  std::map<uint64_t, uint64_t> reservations_;  // begin -> bytes
  Mappings mappings_;
  std::map<uint64_t, uint64_t> allocations_;  // cuMemAlloc: begin -> bytes reserved
  cuda::AllocationHandle next_handle_ = 0x1000;
};

}  // namespace baton::standin
