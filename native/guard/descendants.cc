#include "native/guard/descendants.h"

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "native/system/processes.h"

namespace baton::guard {
namespace {

bool is_alive(const ProcessInfo& info) {
  return info.state != 'Z' && info.state != 'X';
}

// False when it is not there any more, or not ours to kill (it changed its user): waiting for it would not help.
bool kill_process(const ProcessInfo& info) {
  const auto handle = open_process(info.pid);
  if (!handle || handle->start_time != info.start_time) return false;
  const auto sent = signal_process(handle->pidfd.get(), SIGKILL);
  return sent && *sent;
}

}  // namespace

void Reaper::reap() {
  int status = 0;
  for (;;) {
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid < 0 && errno == EINTR) continue;
    if (pid <= 0) return;
    if (pid == main_) main_status_ = status;
  }
}

bool has_living_descendants() {
  const auto below = descendants_of(::getpid());
  return std::any_of(below.begin(), below.end(), is_alive);
}

void kill_descendants(Reaper& reaper) {
  // Soon again at first, so that it is over within milliseconds; a process that takes long to die (a driver gives
  // back its memory) is waited for without burning a core.
  for (int64_t pause_ms = 1;; pause_ms = std::min<int64_t>(pause_ms * 2, 20)) {
    bool killed = false;
    for (const ProcessInfo& info : descendants_of(::getpid())) {
      if (is_alive(info) && kill_process(info)) killed = true;
    }
    reaper.reap();
    if (!killed) {
      // What died meanwhile had children that are ours now: one more look decides.
      const auto below = descendants_of(::getpid());
      const bool left = std::any_of(below.begin(), below.end(), [](const ProcessInfo& info) {
        return is_alive(info) && open_process(info.pid) && ::kill(info.pid, 0) == 0;
      });
      if (!left) return;
    }
    const timespec pause{.tv_sec = 0, .tv_nsec = pause_ms * 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace baton::guard
