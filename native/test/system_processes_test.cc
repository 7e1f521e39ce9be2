// Processes: names of any kind, handles that outlive their process, and everything below one.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string>

#include "native/system/processes.h"

namespace baton {
namespace {

// A child that waits to be ended.
class Child {
 public:
  explicit Child(void (*work)() = nullptr) : pid(::fork()) {
    if (pid != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (work != nullptr) work();
    for (;;)
      ::pause();
  }
  ~Child() { end(); }
  void end() {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    pid = 0;
  }
  pid_t pid;
};

TEST(Processes, NamesMayHoldAnything) {
  std::string rest;
  for (int field = 4; field <= 52; ++field)
    rest += " " + std::to_string(field * 10);
  for (const std::string name : {"python3", "a b", "with ) bracket (", ") S 1 1 1", ""}) {
    const auto info = parse_process_stat("123 (" + name + ") T" + rest + "\n");
    ASSERT_TRUE(info) << name;
    EXPECT_EQ(info->pid, 123);
    EXPECT_EQ(info->command, name);
    EXPECT_EQ(info->state, 'T');
    EXPECT_EQ(info->ppid, 40);
    EXPECT_EQ(info->start_time, 220U);
  }
  for (const auto& [stat, ending] : {std::pair{"1 (x) R 0 0 0 0 0 4194560 0 0 0 0 0 0 0 0 0 0 0 0 5", false},
                                     {"1 (x) D 0 0 0 0 0 4194564 0 0 0 0 0 0 0 0 0 0 0 0 5", true},
                                     {"1 (x) Z 0 0 0 0 0 4194304 0 0 0 0 0 0 0 0 0 0 0 0 5", true}}) {
    EXPECT_EQ(parse_process_stat(stat)->ending, ending) << stat;
  }
  for (const std::string text : {"", "12", "12 (x", "12 (x)", "12 (x) R", "12 (x) R 1 2 3"}) {
    EXPECT_FALSE(parse_process_stat(text)) << text;
  }
}

TEST(Processes, OneIsFoundAndTellsItsState) {
  const auto own = read_process(::getpid());
  ASSERT_TRUE(own);
  EXPECT_EQ(own->ppid, ::getppid());
  Child child;
  ::kill(child.pid, SIGSTOP);
  ::waitpid(child.pid, nullptr, WUNTRACED);
  EXPECT_EQ(read_process(child.pid)->state, 'T');
  const pid_t pid = child.pid;
  child.end();
  EXPECT_FALSE(read_process(pid));
}

TEST(Processes, AHandleIsOfOneProcessForEver) {
  Child child;
  const auto handle = open_process(child.pid);
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->start_time, read_process(child.pid)->start_time);
  EXPECT_FALSE(has_ended(handle->pidfd.get()));
  EXPECT_TRUE(*signal_process(handle->pidfd.get(), 0));
  EXPECT_TRUE(*signal_process(handle->pidfd.get(), SIGKILL));
  pollfd wait{.fd = handle->pidfd.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&wait, 1, 5000), 1);
  // A zombie has ended, and still can be opened by its id.
  EXPECT_FALSE(*signal_process(handle->pidfd.get(), 0));
  EXPECT_TRUE(open_process(child.pid));
  const pid_t pid = child.pid;
  child.end();
  EXPECT_FALSE(*signal_process(handle->pidfd.get(), SIGKILL));
  const auto gone = open_process(pid);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, "PROCESS_NOT_FOUND");
}

TEST(Processes, DescendantsAreFoundInOtherSessionsParentsFirst) {
  const Child child([] {
    if (::fork() == 0) {
      ::setsid();
      ::fork();
    }
  });
  std::vector<ProcessInfo> below;
  for (int i = 0; i < 500 && below.size() < 3; ++i) {
    ::usleep(10'000);
    below = descendants_of(::getpid());
  }
  ASSERT_EQ(below.size(), 3U);
  EXPECT_EQ(below[0].pid, child.pid);
  EXPECT_EQ(below[1].ppid, child.pid);
  EXPECT_EQ(below[2].ppid, below[1].pid);
  EXPECT_EQ(descendants_of(child.pid).size(), 2U);
  EXPECT_TRUE(descendants_of(below[2].pid).empty());
  for (const ProcessInfo& info : below)
    ::kill(info.pid, SIGKILL);
}

}  // namespace
}  // namespace baton
