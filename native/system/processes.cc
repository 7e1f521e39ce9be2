#include "native/system/processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "native/system/system_error.h"

// Older headers lack them; the numbers are the same on every architecture.
#if !defined(SYS_pidfd_open)
#define SYS_pidfd_open 434
#endif
#if !defined(SYS_pidfd_send_signal)
#define SYS_pidfd_send_signal 424
#endif

namespace baton {
namespace {

std::optional<std::string> read_text(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return std::nullopt;
  char text[4096];
  const ssize_t count = ::read(file.get(), text, sizeof(text));
  if (count <= 0) return std::nullopt;
  return std::string(text, static_cast<size_t>(count));
}

}  // namespace

std::optional<ProcessInfo> parse_process_stat(const std::string& text) {
  // The name may hold anything, blanks and brackets too: it ends at the last bracket.
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open || close + 4 > text.size()) {
    return std::nullopt;
  }
  ProcessInfo info;
  info.pid = static_cast<pid_t>(std::strtol(text.c_str(), nullptr, 10));
  info.command = text.substr(open + 1, close - open - 1);
  info.state = text[close + 2];
  const char* rest = text.c_str() + close + 3;
  // Field 4 is the parent, field 9 the kernel's flags (PF_EXITING of include/linux/sched.h among them), field 22 the
  // start time.
  constexpr uint64_t kExiting = 0x4;
  for (int field = 4; field <= 22; ++field) {
    char* end = nullptr;
    const uint64_t value = std::strtoull(rest, &end, 10);
    if (end == rest) return std::nullopt;
    if (field == 4) info.ppid = static_cast<pid_t>(value);
    if (field == 9) info.ending = info.state == 'Z' || info.state == 'X' || (value & kExiting) != 0;
    if (field == 22) info.start_time = value;
    rest = end;
  }
  return info;
}

std::optional<ProcessInfo> read_process(pid_t pid) {
  const auto text = read_text("/proc/" + std::to_string(pid) + "/stat");
  return text ? parse_process_stat(*text) : std::nullopt;
}

std::vector<ProcessInfo> descendants_of(pid_t pid) {
  std::unordered_multimap<pid_t, ProcessInfo> by_parent;
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), ::closedir);
  if (!proc) return {};
  while (const dirent* entry = ::readdir(proc.get())) {
    char* end = nullptr;
    const long found = std::strtol(entry->d_name, &end, 10);
    if (found <= 0 || *end != '\0') continue;
    if (auto info = read_process(static_cast<pid_t>(found))) by_parent.emplace(info->ppid, std::move(*info));
  }
  std::vector<ProcessInfo> below;
  pid_t parent = pid;
  for (size_t next = 0;; ++next) {
    const auto [first, last] = by_parent.equal_range(parent);
    for (auto child = first; child != last; ++child)
      below.push_back(std::move(child->second));
    // Each parent once: a pid reused during the scan could otherwise close a circle.
    by_parent.erase(first, last);
    if (next == below.size()) return below;
    parent = below[next].pid;
  }
}

Result<ProcessHandle> open_process(pid_t pid) {
  const auto gone = [pid] {
    return Error{.code = "PROCESS_NOT_FOUND",
                 .message = "There is no process " + std::to_string(pid) + ".",
                 .expected = "a process",
                 .found = "none of that id",
                 .action = "",
                 .driver_result = {}};
  };
  if (pid <= 0) return gone();
  ProcessHandle handle{.pidfd = Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)))};
  if (!handle.pidfd) {
    // EINVAL, ENOENT: the id of a thread.
    if (errno == ESRCH || errno == EINVAL || errno == ENOENT) return gone();
    return system_error(errno, "open a handle on process " + std::to_string(pid));
  }
  const auto info = read_process(pid);
  // Read after the handle was opened; if its process still has its id now, the text was about it.
  const bool same = ::syscall(SYS_pidfd_send_signal, handle.pidfd.get(), 0, nullptr, 0) == 0 || errno == EPERM;
  if (!info || !same) return gone();
  handle.start_time = info->start_time;
  return handle;
}

bool has_ended(int pidfd) {
  pollfd wait{.fd = pidfd, .events = POLLIN, .revents = 0};
  return ::poll(&wait, 1, 0) > 0;
}

Result<bool> signal_process(int pidfd, int signal) {
  if (has_ended(pidfd)) return false;
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0) return true;
  if (errno == ESRCH) return false;
  return system_error(errno, "send signal " + std::to_string(signal));
}

}  // namespace baton
