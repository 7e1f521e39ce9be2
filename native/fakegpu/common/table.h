// The one table of what is allocated on the stand-in GPUs, shared by all processes that use them.
//
// It is a file, mapped by everybody and changed under its lock (flock on a descriptor that each process opens for
// itself, and a mutex within the process), so that a process which is killed lets go of the lock. A process may be
// killed between any two instructions: a record counts only when its first word says so, and that is one atomic
// store. No total is ever kept: totals are the sum over records whose holders live.
//
//   handle: one piece of physical memory, or one process's context on a GPU
//   holder: a process that keeps a handle alive, as its creator or as one that imported it
//
// A handle that was exported may also be kept alive by an open descriptor alone (descriptors.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "native/fakegpu/common/config.h"
#include "native/fakegpu/common/descriptors.h"
#include "native/fakegpu/common/process.h"

namespace baton::standin {

enum class TableResult {
  kOk,
  kDeviceFull,     // the GPU has not that many bytes left
  kTableFull,      // more handles or holders than the table has room for
  kUnknownMemory,  // no handle has this memfd
  kLockTimeout,    // somebody held the lock for longer than any change takes
};

// One process's hold on one handle.
struct Hold {
  uint64_t handle_id = 0;
  uint32_t handle_slot = 0;
  uint32_t holder_slot = 0;
  uint32_t device = 0;
  uint64_t bytes = 0;
};

class Table {
 public:
  // Opens the table of `config`, or creates it. On failure nullptr, and *problem says why.
  static std::unique_ptr<Table> open(const Config& config, std::string* problem);
  ~Table();

  uint32_t devices() const { return devices_; }
  uint64_t bytes_per_device() const { return bytes_per_device_; }
  uint64_t granularity_bytes() const { return granularity_bytes_; }
  uint64_t context_bytes() const { return context_bytes_; }

  // Takes `bytes` of the device for the memfd, held by this process.
  TableResult allocate(uint32_t device, uint64_t bytes, const MemoryFile& file, Hold* out);
  // Takes what a context needs, and shows this process as one that uses the device.
  TableResult add_context(uint32_t device, Hold* out);
  // Notes that descriptors of this memory may be open anywhere from now on.
  TableResult mark_exported(const Hold& hold);
  // Joins the holders of memory whose descriptor `fd` came from elsewhere. Where only that descriptor kept it alive
  // the memory is entered again, when the device has room. `*reopened` is a descriptor of this process's own.
  TableResult join(int fd, Hold* out, int* reopened);
  // Lets go. `fd`: this process's own descriptor of the memory, still open; -1 for a context.
  TableResult release(const Hold& hold, int fd);
  // Drops what a program that ran under this very process id before (exec keeps it) left behind.
  TableResult release_everything_of_this_process();

  // Bytes in use, after all that belonged to the dead is gone.
  TableResult used_bytes(uint32_t device, uint64_t* bytes);
  // Bytes in use by pid; 0 for a context alone when contexts take nothing.
  TableResult processes(uint32_t device, std::map<pid_t, uint64_t>* bytes_by_pid);

  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

 private:
  class Lock;
  struct Header;
  struct HandleRecord;
  struct HolderRecord;
  struct Snapshot {
    bool valid = false;
    uint64_t changes = 0;
    std::vector<uint64_t> used_bytes;
    std::vector<std::map<pid_t, uint64_t>> bytes_by_pid;
    std::set<ProcessId> holders;
    bool orphans = false;  // memory that only a descriptor keeps alive
    int64_t taken_ns = 0;
  };

  Table() = default;
  bool open_file(std::string* problem);
  bool initialise_or_check(const Config& config, std::string* problem);
  HandleRecord* handles() const;
  HolderRecord* holders() const;

  // All with the lock held.
  TableResult enter(uint32_t device, uint64_t bytes, const MemoryFile& file, uint32_t flags, Hold* out);
  TableResult add_holder(uint32_t handle_slot, Hold* out);
  std::optional<uint32_t> find(const MemoryFile& file) const;
  bool held_by_anyone(uint64_t handle_id) const;
  uint64_t sum_bytes(uint32_t device) const;
  void sweep();
  void sweep_holders();
  void sweep_handles();
  void take_snapshot();
  template <class Read>
  TableResult query(const Read& read);
  // With the mutex held, not the file's lock.
  bool snapshot_is_true();

  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

  std::string path_;
  uint32_t devices_ = 0;
  uint64_t bytes_per_device_ = 0;
  uint64_t granularity_bytes_ = 0;
  uint64_t context_bytes_ = 0;

  std::mutex mutex_;
  int fd_ = -1;  // -1 in a forked child until it opens its own
  Header* header_ = nullptr;
  ProcessId self_;
  Liveness liveness_;
  Snapshot snapshot_;
};

}  // namespace baton::standin
