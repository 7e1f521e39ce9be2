// Which process is which, and whether it still lives.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>

namespace baton::standin {

// A pid alone may be given to another process; with its start time it never is.
struct ProcessId {
  pid_t pid = 0;
  uint64_t start_time = 0;  // field 22 of /proc/<pid>/stat
  auto operator<=>(const ProcessId&) const = default;
};

ProcessId this_process();

// Tells which of many processes are gone, in one system call for all that it has met before: a pidfd is readable
// from the moment when its process has ended, zombies included. Not thread safe.
class Liveness {
 public:
  Liveness() = default;
  ~Liveness() { forget_all(); }
  Liveness(const Liveness&) = delete;
  Liveness& operator=(const Liveness&) = delete;

  // Those of `processes` that are gone.
  std::set<ProcessId> dead_among(const std::set<ProcessId>& processes);
  // Closes what it keeps open; in a forked child too.
  void forget_all();

 private:
  enum class Watch { kByPidfd, kAlive, kGone };
  Watch watch(const ProcessId& process);

  std::map<ProcessId, int> pidfds_;
};

}  // namespace baton::standin
