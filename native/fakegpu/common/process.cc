#include "native/fakegpu/common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace baton::standin {
namespace {

enum class Life { kAlive, kZombie, kGone, kUnknown };

struct Seen {
  Life life = Life::kUnknown;
  uint64_t start_time = 0;
};

Seen look_up(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  // Only these two say that there is no such process; a lack of descriptors, say, tells nothing about it.
  if (fd < 0) return {errno == ENOENT || errno == ESRCH ? Life::kGone : Life::kUnknown, 0};
  std::array<char, 1024> text{};
  const ssize_t length = read(fd, text.data(), text.size() - 1);
  const int read_error = length < 0 ? errno : 0;
  close(fd);
  if (read_error == ESRCH) return {Life::kGone, 0};
  // The command may hold spaces and brackets; the fields start after the last bracket.
  const char* field = std::strrchr(text.data(), ')');
  if (field == nullptr || field[1] != ' ') return {};
  field += 2;  // field 3, the state
  const char state = *field;
  for (int skipped = 3; skipped < 22; ++skipped) {
    field = std::strchr(field, ' ');
    if (field == nullptr) return {};
    ++field;
  }
  const bool zombie = state == 'Z' || state == 'X' || state == 'x';
  return {zombie ? Life::kZombie : Life::kAlive, std::strtoull(field, nullptr, 10)};
}

}  // namespace

ProcessId this_process() {
  return {getpid(), look_up(getpid()).start_time};
}

Liveness::Watch Liveness::watch(const ProcessId& process) {
  if (pidfds_.contains(process)) return Watch::kByPidfd;
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0));  // close-on-exec by itself
  if (fd < 0 && errno == ESRCH) return Watch::kGone;
  // Looked up after the pidfd is open: what has this start time now is what the pidfd is of.
  const Seen seen = look_up(process.pid);
  const bool another =
      seen.life == Life::kGone || (seen.life != Life::kUnknown && seen.start_time != process.start_time);
  if (another || seen.life == Life::kUnknown) {
    if (fd >= 0) close(fd);
    return another ? Watch::kGone : Watch::kAlive;
  }
  // No pidfd (an old kernel, a strict container): the state is all there is.
  if (fd < 0) return seen.life == Life::kZombie ? Watch::kGone : Watch::kAlive;
  pidfds_.emplace(process, fd);
  return Watch::kByPidfd;
}

std::set<ProcessId> Liveness::dead_among(const std::set<ProcessId>& processes) {
  for (auto known = pidfds_.begin(); known != pidfds_.end();) {
    if (processes.contains(known->first)) {
      ++known;
    } else {
      close(known->second);
      known = pidfds_.erase(known);
    }
  }
  std::set<ProcessId> dead;
  std::vector<pollfd> polled;
  std::vector<ProcessId> polled_processes;
  for (const ProcessId& process : processes) {
    const Watch watched = watch(process);
    if (watched == Watch::kGone) {
      dead.insert(process);
    } else if (watched == Watch::kByPidfd) {
      polled.push_back({.fd = pidfds_.at(process), .events = POLLIN, .revents = 0});
      polled_processes.push_back(process);
    }
  }
  if (!polled.empty() && poll(polled.data(), polled.size(), 0) > 0) {
    for (size_t i = 0; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      dead.insert(polled_processes[i]);
      close(polled[i].fd);
      pidfds_.erase(polled_processes[i]);
    }
  }
  return dead;
}

void Liveness::forget_all() {
  for (const auto& [process, fd] : pidfds_)
    close(fd);
  pidfds_.clear();
}

}  // namespace baton::standin
