// Descriptors of segments for other processes.
#include <fcntl.h>
#include <unistd.h>

#include "native/pool/pool.h"

namespace baton::pool {

Result<int> Pool::export_segment(uint64_t index) {
  if (!exportable_) {
    return Error{.code = "NOT_EXPORTABLE",
                 .message = "Pool '" + name_ + "' was created without export.",
                 .expected = "exportable = 1 in its options",
                 .found = "0",
                 .action = "Create the pool with exportable = 1.",
                 .driver_result = std::nullopt};
  }
  const std::lock_guard lock(state_mutex_);
  const auto found = segments_.find(index);
  if (found == segments_.end() || found->second.state != Segment::State::kMapped) {
    return Error{.code = "SEGMENT_NOT_MAPPED",
                 .message = "Segment " + std::to_string(index) + " of pool '" + name_ + "' cannot be exported.",
                 .expected = "a mapped segment",
                 .found = found == segments_.end() ? "no such segment" : "a paused segment",
                 .action = "Resume the pool first, and export only segments of live blocks.",
                 .driver_result = std::nullopt};
  }
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  int fd = -1;
  BATON_TRY(gpu_.driver().cuMemExportToShareableHandle(&fd, found->second.handle, cuda::kHandlePosixFileDescriptor, 0));
  // An open descriptor holds the memory: a program that this process starts must not inherit it.
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  return fd;
}

}  // namespace baton::pool
