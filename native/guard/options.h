// The command line of baton-guard.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "native/driver/error.h"

namespace baton::guard {

inline constexpr char kUsage[] =
    "usage: baton-guard --parent PID --parent-start TICKS [--stopped-deadline-ms N] [--grace-ms N] [--remove PATH]...\n"
    "                   [--shared-memory PREFIX] [--record FILE] -- COMMAND...\n"
    "\n"
    "Runs COMMAND and exits as it does. Ends every process below it, whatever session it is in, when COMMAND ends,\n"
    "when the process PID (with start time TICKS, field 22 of /proc/PID/stat) is gone, or when that is stopped longer\n"
    "than the deadline (0: not watched). In the last two cases it then removes each PATH, and those files whose path\n"
    "begins with PREFIX that a process below it was seen to map; each is noted in FILE as DEVICE INODE PATH.\n";

struct Options {
  pid_t parent = 0;
  uint64_t parent_start = 0;
  // How long the parent may be stopped (SIGSTOP); 0: any time.
  int64_t stopped_deadline_ms = 0;
  // From a signal to end (SIGTERM, SIGINT, SIGHUP, SIGQUIT) to SIGKILL.
  int64_t grace_ms = 5000;
  // Files and folders of the run alone.
  std::vector<std::string> remove;
  // Begin of the paths of shared memory, such as /dev/shm/deepspeed_; empty: none is looked for.
  std::string shared_memory;
  // Empty: no record.
  std::string record;
  // Null-terminated, for execvp.
  char** command = nullptr;
};

// BAD_ARGUMENT when it does not follow the usage.
Result<Options> parse_options(int count, char** arguments);

}  // namespace baton::guard
