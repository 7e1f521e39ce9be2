// The watchdog ends its process at once when the other one is gone, whatever the process is doing.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>

#include "native/capi/baton.h"

namespace {

using Clock = std::chrono::steady_clock;

uint64_t start_time_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::stringstream text;
  text << file.rdbuf();
  std::istringstream fields(text.str().substr(text.str().rfind(')') + 2));
  std::string field;
  for (int i = 3; i <= 22; ++i)
    fields >> field;
  return std::stoull(field);
}

// A parent that sleeps, and a child of it that watches it. The child does `body` once its watchdog runs.
struct Family {
  pid_t parent;
  int child_pidfd;
};

Family start_family(const std::function<void()>& body) {
  int pipe_ends[2];
  EXPECT_EQ(pipe(pipe_ends), 0);
  fflush(nullptr);
  const pid_t parent = fork();
  if (parent == 0) {
    const pid_t self = getpid();
    const uint64_t started = start_time_of(self);
    const pid_t child = fork();
    if (child == 0) {
      const int32_t result = baton_watchdog_start(self, started) == 0 ? getpid() : -1;
      if (write(pipe_ends[1], &result, sizeof(result)) != sizeof(result)) _exit(1);
      body();
      _exit(0);
    }
    for (;;)
      pause();
  }
  int32_t child = 0;
  EXPECT_EQ(read(pipe_ends[0], &child, sizeof(child)), static_cast<ssize_t>(sizeof(child)));
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  EXPECT_GT(child, 0) << "the watchdog did not start";
  return {parent, static_cast<int>(syscall(SYS_pidfd_open, child, 0))};
}

bool ended(int pidfd, int within_ms) {
  pollfd poll_for{pidfd, POLLIN, 0};
  return poll(&poll_for, 1, within_ms) == 1;
}

void expect_end_within_100_ms(const std::function<void()>& body) {
  const Family family = start_family(body);
  EXPECT_FALSE(ended(family.child_pidfd, 150)) << "it ended with its parent alive";
  const auto begin = Clock::now();
  kill(family.parent, SIGKILL);
  EXPECT_TRUE(ended(family.child_pidfd, 3000));
  EXPECT_LT(Clock::now() - begin, std::chrono::milliseconds(100));
  waitpid(family.parent, nullptr, 0);
  close(family.child_pidfd);
}

TEST(Watchdog, EndsASleepingProcess) {
  expect_end_within_100_ms([] {
    for (;;)
      pause();
  });
}

TEST(Watchdog, EndsAProcessThatComputes) {
  expect_end_within_100_ms([] {
    for (std::atomic<uint64_t> i = 0;;)
      ++i;
  });
}

TEST(Watchdog, EndsAProcessThatBlocksEverySignal) {
  expect_end_within_100_ms([] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    for (;;)
      pause();
  });
}

// The parent is a zombie until somebody reaps it; it is gone all the same.
TEST(Watchdog, AZombieIsGone) {
  const Family family = start_family([] {
    for (;;)
      pause();
  });
  kill(family.parent, SIGKILL);
  EXPECT_TRUE(ended(family.child_pidfd, 3000));
  waitpid(family.parent, nullptr, 0);
  close(family.child_pidfd);
}

int in_child(const std::function<bool()>& body) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool last_error_is(const char* code) {
  return std::strstr(baton_last_error(), (std::string("\"") + code + "\"").c_str()) != nullptr;
}

TEST(Watchdog, ForAProcessThatIsGoneItDoesNotStart) {
  EXPECT_EQ(in_child([] {
              const pid_t parent = getppid();
              // The same number with another start time is another process.
              if (baton_watchdog_start(parent, start_time_of(parent) + 1) == 0) return false;
              if (!last_error_is("PARENT_GONE")) return false;
              return baton_watchdog_start(parent, start_time_of(parent)) == 0;
            }),
            0);
}

TEST(Watchdog, StartsOnceAProcess) {
  EXPECT_EQ(in_child([] {
              const pid_t parent = getppid();
              if (baton_watchdog_start(parent, start_time_of(parent)) != 0) return false;
              if (baton_watchdog_start(parent, start_time_of(parent)) != 0) return false;
              if (baton_watchdog_start(getpid(), start_time_of(getpid())) == 0) return false;
              return last_error_is("WATCHDOG_RUNNING");
            }),
            0);
}

}  // namespace
