// Ending everything below this process, and waiting for it. The process must be a child subreaper, so that what
// loses its parent becomes its child and none can hide.
#pragma once

#include <sys/types.h>

#include <optional>

namespace baton::guard {

// Takes the status of every child that has ended; that of `main` is kept.
class Reaper {
 public:
  explicit Reaper(pid_t main) : main_(main) {}
  void reap();
  // As waitpid gives it.
  std::optional<int> main_status() const { return main_status_; }

 private:
  const pid_t main_;
  std::optional<int> main_status_;
};

// Processes below this one that may still be ended: not zombies, and ours to signal.
bool has_living_descendants();

// SIGKILL, again and again, until none is left: a process may fork while it is being looked for.
void kill_descendants(Reaper& reaper);

}  // namespace baton::guard
