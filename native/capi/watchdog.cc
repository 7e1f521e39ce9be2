// Ends this process when another one is gone. A thread of its own, so that nothing the process does, or fails to
// do, can delay it; SIGKILL, so that no handler, lock or exit function can.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <optional>
#include <string>

#include "native/capi/guard.h"

using baton::Error;
using baton::Status;
using baton::capi::guarded;

namespace {

// Where the kernel has no pidfd (before 5.3), /proc is read this often.
constexpr int kPollMs = 20;

struct Watch {
  int32_t pid;
  uint64_t start_time;
  int pidfd;  // -1: there is none
};

// Field 22 of /proc/<pid>/stat; nullopt: the process is gone, or a zombie.
std::optional<uint64_t> start_time_of(int32_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  // The command may hold spaces and brackets; the fields after it begin behind the last bracket.
  const size_t command_end = text.rfind(')');
  if (command_end == std::string::npos) return std::nullopt;
  size_t at = command_end + 2;
  if (at >= text.size() || text[at] == 'Z' || text[at] == 'X') return std::nullopt;
  for (int field = 3; field < 22; ++field) {
    at = text.find(' ', at);
    if (at == std::string::npos) return std::nullopt;
    ++at;
  }
  return std::strtoull(text.c_str() + at, nullptr, 10);
}

bool is_alive(const Watch& watch) {
  return start_time_of(watch.pid) == watch.start_time;
}

void* watch_thread(void* argument) {
  Watch watch = *static_cast<Watch*>(argument);
  delete static_cast<Watch*>(argument);
  pthread_setname_np(pthread_self(), "baton-watchdog");
  for (;;) {
    if (watch.pidfd >= 0) {
      pollfd poll_for{watch.pidfd, POLLIN, 0};
      if (poll(&poll_for, 1, -1) <= 0) continue;
      if ((poll_for.revents & POLLIN) != 0) break;
      watch.pidfd = -1;  // somebody closed a descriptor that is not theirs; watch on without it
    } else {
      if (!is_alive(watch)) break;
      poll(nullptr, 0, kPollMs);
    }
  }
  kill(getpid(), SIGKILL);
  return nullptr;
}

Error failed(const char* code, const std::string& message, const std::string& expected, const std::string& found,
             const std::string& action) {
  return Error{.code = code,
               .message = message,
               .expected = expected,
               .found = found,
               .action = action,
               .driver_result = std::nullopt};
}

Status start(int32_t pid, uint64_t start_time) {
  static std::mutex mutex;
  static pid_t owner = 0;  // a forked child has no watchdog: threads are not inherited
  static Watch running{};
  const std::lock_guard lock(mutex);
  if (owner == getpid()) {
    if (running.pid == pid && running.start_time == start_time) return {};
    return failed("WATCHDOG_RUNNING", "This process has a watchdog for another process already.",
                  "process " + std::to_string(running.pid), "process " + std::to_string(pid),
                  "Start the watchdog once.");
  }
  Watch watch{pid, start_time, static_cast<int>(syscall(SYS_pidfd_open, pid, 0))};
  if (watch.pidfd < 0 && errno != ENOSYS && errno != ESRCH && errno != EPERM) {
    return failed("WATCHDOG_FAILED", "The process to watch cannot be opened.", "a pidfd", std::strerror(errno),
                  "Raise the limit of open files.");
  }
  // After the pidfd is open: a process that started later under the same number has another start time.
  if (!is_alive(watch)) {
    if (watch.pidfd >= 0) close(watch.pidfd);
    return failed("PARENT_GONE", "The process to watch is gone.",
                  "process " + std::to_string(pid) + " with start time " + std::to_string(start_time),
                  "no such process", "End this process; what it works for has ended.");
  }
  // No signal of the process may be handled on the watchdog's thread.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  auto* argument = new Watch(watch);
  const int result = pthread_create(&thread, nullptr, watch_thread, argument);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (result != 0) {
    delete argument;
    if (watch.pidfd >= 0) close(watch.pidfd);
    return failed("WATCHDOG_FAILED", "The watchdog's thread cannot be started.", "a thread", std::strerror(result),
                  "Raise the limit of threads.");
  }
  pthread_detach(thread);
  owner = getpid();
  running = watch;
  return {};
}

}  // namespace

baton_status baton_watchdog_start(int32_t pid, uint64_t start_time) {
  return guarded([&] { return start(pid, start_time); });
}
