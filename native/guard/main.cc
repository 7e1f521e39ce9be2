// baton-guard: stands between the controller and a launcher or an engine. Whatever becomes of the controller
// (killed, stopped), everything below the guard ends: a process group is not enough, since launchers start their
// ranks in sessions of their own. What the run would leave in the file system goes too.
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "native/guard/descendants.h"
#include "native/guard/leftovers.h"
#include "native/guard/options.h"
#include "native/system/descriptor.h"
#include "native/system/processes.h"

namespace baton::guard {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// As a shell: 126 and 127 for a command that cannot run, 125 for the guard's own trouble, 124 for a deadline.
constexpr int kExitOwnTrouble = 125;
constexpr int kExitNotExecutable = 126;
constexpr int kExitNotFound = 127;
constexpr int kExitStopped = 124;
constexpr int kExitParentGone = 128 + SIGKILL;

// A stop is seen by looking: there is no event for it.
constexpr milliseconds kLook{100};
// Processes that outlive COMMAND may be about to end by themselves (helpers of a library); then SIGKILL.
constexpr milliseconds kAfterCommand{300};

constexpr int kForwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

bool asks_to_end(int signal) {
  return signal != SIGUSR1 && signal != SIGUSR2;
}

[[noreturn]] void run_command(const Options& options, const sigset_t& signals_before, pid_t guard) {
  // The guard is the only one that ends the command; if somebody ends the guard, it goes along.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != guard) ::_exit(kExitParentGone);
  ::sigprocmask(SIG_SETMASK, &signals_before, nullptr);
  ::execvp(options.command[0], options.command);
  const int number = errno;
  std::fprintf(stderr, "baton-guard: cannot run %s: %s\n", options.command[0], std::strerror(number));
  ::_exit(number == ENOENT ? kExitNotFound : kExitNotExecutable);
}

// Ends as the command did, by the same signal if it was one.
[[noreturn]] void exit_as(int status) {
  if (WIFEXITED(status)) ::_exit(WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  // The command has left its core dump; a second one would be of the guard.
  const rlimit none{.rlim_cur = 0, .rlim_max = 0};
  ::setrlimit(RLIMIT_CORE, &none);
  std::signal(signal, SIG_DFL);
  sigset_t unblock;
  sigemptyset(&unblock);
  sigaddset(&unblock, signal);
  ::sigprocmask(SIG_UNBLOCK, &unblock, nullptr);
  ::raise(signal);
  ::_exit(128 + signal);
}

class Guard {
 public:
  Guard(const Options& options, ProcessHandle parent, Descriptor signals, pid_t command)
      : options_(options),
        parent_(std::move(parent)),
        signals_(std::move(signals)),
        command_(command),
        reaper_(command),
        leftovers_(options) {}

  [[noreturn]] void watch() {
    for (;;) {
      pollfd events[] = {{.fd = signals_.get(), .events = POLLIN, .revents = 0},
                         {.fd = parent_.pidfd.get(), .events = POLLIN, .revents = 0}};
      ::poll(events, 2, static_cast<int>(kLook.count()));
      leftovers_.look();
      if (events[1].revents != 0) end("the controller is gone", kExitParentGone);
      if (events[0].revents != 0) read_signals();
      reaper_.reap();
      if (reaper_.main_status()) finish(*reaper_.main_status());
      if (parent_is_stopped_too_long()) end("the controller has been stopped for too long", kExitStopped);
      if (kill_at_ && Clock::now() >= *kill_at_) {
        kill_descendants(reaper_);
        if (has_ended(parent_.pidfd.get())) leftovers_.remove();
        if (reaper_.main_status()) exit_as(*reaper_.main_status());
        ::_exit(kExitParentGone);
      }
    }
  }

 private:
  void read_signals() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      const int signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGCHLD) continue;
      // A terminal signals the whole foreground group: the command has it already.
      if (info.ssi_code != SI_KERNEL && !reaper_.main_status()) ::kill(command_, signal);
      if (asks_to_end(signal) && !kill_at_) kill_at_ = Clock::now() + milliseconds(options_.grace_ms);
    }
  }

  bool parent_is_stopped_too_long() {
    if (options_.stopped_deadline_ms == 0) return false;
    const auto info = read_process(options_.parent);
    const bool stopped =
        info && info->start_time == options_.parent_start && (info->state == 'T' || info->state == 't');
    if (!stopped) {
      stopped_since_.reset();
      return false;
    }
    const Clock::time_point now = Clock::now();
    if (!stopped_since_) stopped_since_ = now;
    return now - *stopped_since_ >= milliseconds(options_.stopped_deadline_ms);
  }

  [[noreturn]] void end(const char* why, int code) {
    kill_descendants(reaper_);
    // Other guards do the same with theirs: what a process of theirs makes anew is gone with the last of them.
    leftovers_.remove();
    std::fprintf(stderr, "baton-guard: %s; ended %s and all below it\n", why, options_.command[0]);
    ::_exit(code);
  }

  [[noreturn]] void finish(int status) {
    const Clock::time_point deadline = Clock::now() + kAfterCommand;
    while (has_living_descendants() && Clock::now() < deadline && !has_ended(parent_.pidfd.get())) {
      ::usleep(5'000);
      reaper_.reap();
    }
    kill_descendants(reaper_);
    if (has_ended(parent_.pidfd.get())) leftovers_.remove();
    exit_as(status);
  }

  const Options options_;
  const ProcessHandle parent_;
  const Descriptor signals_;
  const pid_t command_;
  Reaper reaper_;
  Leftovers leftovers_;
  std::optional<Clock::time_point> stopped_since_;
  std::optional<Clock::time_point> kill_at_;
};

int run(int count, char** arguments) {
  const auto options = parse_options(count, arguments);
  if (!options) {
    std::fprintf(stderr, "baton-guard: %s\n%s", options.error().message.c_str(), kUsage);
    return kExitOwnTrouble;
  }
  auto parent = open_process(options->parent);
  if (!parent || parent->start_time != options->parent_start || has_ended(parent->pidfd.get())) {
    std::fprintf(stderr, "baton-guard: the controller (process %d) is gone; nothing started\n", options->parent);
    return kExitParentGone;
  }
  sigset_t watched;
  sigset_t before;
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  for (int signal : kForwarded)
    sigaddset(&watched, signal);
  ::sigprocmask(SIG_BLOCK, &watched, &before);
  // An ignored SIGCHLD, inherited, would make the kernel throw the status of children away.
  std::signal(SIGCHLD, SIG_DFL);
  // Its messages come when a reader may be gone; they must not end it before its work is done.
  std::signal(SIGPIPE, SIG_IGN);
  Descriptor signals(::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals || ::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
    std::fprintf(stderr, "baton-guard: cannot watch over processes: %s\n", std::strerror(errno));
    return kExitOwnTrouble;
  }
  const pid_t guard = ::getpid();
  const pid_t command = ::fork();
  if (command < 0) {
    std::fprintf(stderr, "baton-guard: cannot start a process: %s\n", std::strerror(errno));
    return kExitOwnTrouble;
  }
  if (command == 0) {
    std::signal(SIGPIPE, SIG_DFL);
    run_command(*options, before, guard);
  }
  Guard(*options, std::move(*parent), std::move(signals), command).watch();
}

}  // namespace
}  // namespace baton::guard

int main(int count, char** arguments) {
  return baton::guard::run(count, arguments);
}
