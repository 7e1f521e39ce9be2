// DeviceMemory: handles. The memory of one is a memfd, so that other processes can map it too.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "native/fakegpu/common/export.h"
#include "native/fakegpu/cuda/device_memory.h"

namespace baton::standin {
namespace {

cuda::Result result_of(TableResult result) {
  switch (result) {
    case TableResult::kOk:
      return cuda::kSuccess;
    case TableResult::kDeviceFull:
      return cuda::kOutOfMemory;
    case TableResult::kTableFull:
      complain("the table has no room for more handles");
      return cuda::kOutOfMemory;
    case TableResult::kUnknownMemory:
      return cuda::kInvalidValue;
    case TableResult::kLockTimeout:
      return cuda::kSystemNotReady;
  }
  return cuda::kUnknown;
}

// A descriptor of an open description of its own, which open_elsewhere() needs: the one that memfd_create gives
// does not count as a writer, and a received one is shared with its sender.
int reopen(int fd) {
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  return open(link.c_str(), O_RDWR | O_CLOEXEC);
}

int create_memory_file(uint32_t device) {
  const std::string name = kMemoryFileName + std::to_string(device);
  const int created = memfd_create(name.c_str(), MFD_CLOEXEC);
  if (created < 0) return -1;
  const int fd = reopen(created);
  close(created);
  return fd;
}

}  // namespace

cuda::AllocationHandle DeviceMemory::add(Physical physical) {
  const std::lock_guard lock(mutex_);
  const cuda::AllocationHandle handle = next_handle_++;
  physical_.emplace(handle, physical);
  return handle;
}

cuda::Result DeviceMemory::create(uint32_t device, uint64_t bytes, bool exportable, cuda::AllocationHandle* handle) {
  if (bytes == 0 || bytes % granularity() != 0) return cuda::kInvalidValue;
  Physical physical{.hold = {}, .fd = create_memory_file(device), .exportable = exportable, .references = 1};
  struct stat status{};
  if (physical.fd < 0 || fstat(physical.fd, &status) != 0) {
    complain(std::string("no memfd could be made: ") + std::strerror(errno));
    if (physical.fd >= 0) close(physical.fd);
    return cuda::kOutOfMemory;
  }
  const TableResult entered = table_.allocate(device, bytes, {status.st_dev, status.st_ino}, &physical.hold);
  if (entered != TableResult::kOk) {
    close(physical.fd);
    return result_of(entered);
  }
  // All of it now: a page that turns out to be missing later would kill whoever touches it.
  if (fallocate(physical.fd, 0, 0, static_cast<off_t>(bytes)) != 0) {
    complain("the host has no room for " + std::to_string(bytes) + " bytes of GPU " + std::to_string(device) + ": " +
             std::strerror(errno));
    give_back({physical});
    return cuda::kOutOfMemory;
  }
  *handle = add(physical);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::import(int fd, cuda::AllocationHandle* handle) {
  Physical physical{.hold = {}, .fd = -1, .exportable = true, .references = 1};
  const TableResult joined = table_.join(fd, &physical.hold, &physical.fd);
  if (joined != TableResult::kOk) return result_of(joined);
  *handle = add(physical);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::export_to(cuda::AllocationHandle handle, int* fd) {
  const std::lock_guard lock(mutex_);
  const auto found = physical_.find(handle);
  if (found == physical_.end()) return cuda::kInvalidValue;
  if (!found->second.exportable) return cuda::kNotPermitted;
  // Noted before the descriptor exists: a process killed in between leaves no memory that looks free and is not.
  const TableResult marked = table_.mark_exported(found->second.hold);
  if (marked != TableResult::kOk) return result_of(marked);
  const int exported = reopen(found->second.fd);
  if (exported < 0) {
    complain(std::string("memory cannot be exported: ") + std::strerror(errno));
    return cuda::kOutOfMemory;
  }
  *fd = exported;
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::retain(uint64_t address, cuda::AllocationHandle* handle) {
  const std::lock_guard lock(mutex_);
  const auto mapping = mapping_around(address);
  if (mapping == mappings_.end()) return cuda::kInvalidValue;
  ++physical_.at(mapping->second.handle).references;
  *handle = mapping->second.handle;
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::release(cuda::AllocationHandle handle) {
  Unreferenced unreferenced;
  {
    const std::lock_guard lock(mutex_);
    if (!physical_.contains(handle)) return cuda::kInvalidValue;
    drop_reference(handle, &unreferenced);
  }
  give_back(unreferenced);
  return cuda::kSuccess;
}

cuda::Result DeviceMemory::properties(cuda::AllocationHandle handle, cuda::AllocationProperties* properties) {
  const std::lock_guard lock(mutex_);
  const auto found = physical_.find(handle);
  if (found == physical_.end()) return cuda::kInvalidValue;
  *properties = {};
  properties->type = cuda::kAllocationTypePinned;
  properties->requested_handle_types = found->second.exportable ? cuda::kHandlePosixFileDescriptor : cuda::kHandleNone;
  properties->location = {cuda::kLocationDevice, static_cast<int32_t>(found->second.hold.device)};
  return cuda::kSuccess;
}

void DeviceMemory::drop_reference(cuda::AllocationHandle handle, Unreferenced* unreferenced) {
  const auto found = physical_.find(handle);
  if (--found->second.references > 0) return;
  unreferenced->push_back(found->second);
  physical_.erase(found);
}

void DeviceMemory::give_back(const Unreferenced& unreferenced) {
  for (const Physical& physical : unreferenced) {
    table_.release(physical.hold, physical.fd);
    close(physical.fd);
  }
}

void DeviceMemory::close_descriptors() {
  for (auto& [handle, physical] : physical_) {
    close(physical.fd);
    physical.fd = -1;
  }
}

}  // namespace baton::standin
