// Processes as /proc and pidfds show them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "native/driver/error.h"
#include "native/system/descriptor.h"

namespace baton {

struct ProcessInfo {
  pid_t pid = 0;
  pid_t ppid = 0;
  char state = '?';         // R, S, D, T (stopped), t (traced), Z (zombie), X
  bool ending = false;      // it has been killed or has exited, and the kernel is still taking it apart
  uint64_t start_time = 0;  // clock ticks since boot; with the pid it names a process
  std::string command;      // as the kernel names it, at most 15 bytes. The full line would need a lock of the
                            // process's memory, for which one could wait.
};

// The text of /proc/<pid>/stat; nothing when it is not one.
std::optional<ProcessInfo> parse_process_stat(const std::string& text);

// Nothing when there is no such process.
std::optional<ProcessInfo> read_process(pid_t pid);

// Every process below `pid`, zombies too, itself not included, parents before their children.
std::vector<ProcessInfo> descendants_of(pid_t pid);

// A handle on the process `pid`, and its start time, read while the handle proved that it is the same process.
struct ProcessHandle {
  Descriptor pidfd;
  uint64_t start_time = 0;
};

// PROCESS_NOT_FOUND when there is none; a zombie still is one.
Result<ProcessHandle> open_process(pid_t pid);

// Whether the process of a pidfd has ended (a zombie has). It is readable from then on.
bool has_ended(int pidfd);

// False when the process has ended.
Result<bool> signal_process(int pidfd, int signal);

}  // namespace baton
