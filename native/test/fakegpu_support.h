// What the tests of the stand-in GPUs share: a table of their own, clients as child processes, and the few driver
// calls that a client makes. Tests know the stand-in as any program does: through its libraries.
#pragma once
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "native/driver/cuda_driver.h"
#include "native/driver/nvml.h"

namespace baton::test {

inline constexpr uint64_t kMiB = 1 << 20;
inline constexpr uint64_t kPiece = 2 * kMiB;  // the stand-in's granularity
inline constexpr uint32_t kDevices = 2;
inline constexpr uint64_t kDeviceBytes = 64 * kMiB;
inline const std::string kCudaLibrary = BATON_BUILD_FOLDER "/standin/libcuda.so.1";
inline const std::string kNvmlLibrary = BATON_BUILD_FOLDER "/standin/libnvidia-ml.so.1";

// Stand-in GPUs that only this test program and its children see. A death test that starts the program anew finds
// the table of its parent in the environment, and leaves it alone.
class StandinTable : public ::testing::Environment {
 public:
  explicit StandinTable(std::map<std::string, std::string> settings = {}) : settings_(std::move(settings)) {}

  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (std::getenv("BATON_STANDIN_TABLE") != nullptr) return;
    path_ = "/dev/shm/baton-test-" + std::to_string(getpid());
    unlink(path_.c_str());
    setenv("BATON_STANDIN_TABLE", path_.c_str(), 1);
    setenv("BATON_STANDIN_DEVICES", std::to_string(kDevices).c_str(), 1);
    setenv("BATON_STANDIN_BYTES", std::to_string(kDeviceBytes).c_str(), 1);
    for (const auto& [name, value] : settings_)
      setenv(name.c_str(), value.c_str(), 1);
  }
  void TearDown() override {
    if (!path_.empty()) unlink(path_.c_str());
  }

 private:
  std::map<std::string, std::string> settings_;
  std::string path_;
};

template <class T>
T take(Result<T> result) {
  if (!result.ok()) {
    ADD_FAILURE() << to_json(result.error());
    std::abort();
  }
  return std::move(result).value();
}

#define EXPECT_OK(expression)                                                      \
  do {                                                                             \
    const ::baton::Status expected_ok = (expression);                              \
    if (!expected_ok.ok()) ADD_FAILURE() << ::baton::to_json(expected_ok.error()); \
  } while (false)

// A program on the stand-in GPUs. Its process must not have been forked from one that used them.
struct Client {
  Client() : driver_owner(take(cuda::CudaDriver::open(kCudaLibrary))), cuda(*driver_owner) {}

  // Context of a device, current in this thread.
  cuda::Context use(int device) {
    cuda::Context context = nullptr;
    EXPECT_EQ(cuda.cuDevicePrimaryCtxRetain.raw(&context, device), cuda::kSuccess);
    EXPECT_EQ(cuda.cuCtxSetCurrent.raw(context), cuda::kSuccess);
    return context;
  }

  static cuda::AllocationProperties properties(int device, bool exportable = true) {
    cuda::AllocationProperties properties{};
    properties.type = cuda::kAllocationTypePinned;
    properties.requested_handle_types = exportable ? cuda::kHandlePosixFileDescriptor : cuda::kHandleNone;
    properties.location = {cuda::kLocationDevice, device};
    return properties;
  }

  cuda::Result create(int device, uint64_t bytes, cuda::AllocationHandle* handle, bool exportable = true) const {
    const auto wanted = properties(device, exportable);
    return cuda.cuMemCreate.raw(handle, bytes, &wanted, 0);
  }

  uint64_t reserve(uint64_t bytes) const {
    cuda::DevicePointer address = 0;
    EXPECT_EQ(cuda.cuMemAddressReserve.raw(&address, bytes, 0, 0, 0), cuda::kSuccess);
    return address;
  }

  cuda::Result set_access(uint64_t address, uint64_t bytes, int device, cuda::AccessFlags flags) const {
    const cuda::AccessDescriptor descriptor{{cuda::kLocationDevice, device}, flags};
    return cuda.cuMemSetAccess.raw(address, bytes, &descriptor, 1);
  }

  // Fresh addresses with this memory, readable and, if so asked, writable.
  char* map(cuda::AllocationHandle handle, uint64_t bytes, cuda::AccessFlags flags = cuda::kAccessReadWrite) const {
    const uint64_t address = reserve(bytes);
    EXPECT_EQ(cuda.cuMemMap.raw(address, bytes, 0, handle, 0), cuda::kSuccess);
    EXPECT_EQ(set_access(address, bytes, 0, flags), cuda::kSuccess);
    return reinterpret_cast<char*>(address);
  }

  void unmap(char* pointer, uint64_t bytes) const {
    EXPECT_EQ(cuda.cuMemUnmap.raw(reinterpret_cast<uint64_t>(pointer), bytes), cuda::kSuccess);
    EXPECT_EQ(cuda.cuMemAddressFree.raw(reinterpret_cast<uint64_t>(pointer), bytes), cuda::kSuccess);
  }

  int export_fd(cuda::AllocationHandle handle) const {
    int fd = -1;
    EXPECT_EQ(cuda.cuMemExportToShareableHandle.raw(&fd, handle, cuda::kHandlePosixFileDescriptor, 0), cuda::kSuccess);
    return fd;
  }

  cuda::Result import_fd(int fd, cuda::AllocationHandle* handle) const {
    void* shareable = reinterpret_cast<void*>(static_cast<intptr_t>(fd));
    return cuda.cuMemImportFromShareableHandle.raw(handle, shareable, cuda::kHandlePosixFileDescriptor);
  }

  std::unique_ptr<const cuda::CudaDriver> driver_owner;
  const cuda::CudaDriver& cuda;
};

// What NVML says is in use; the test program's own view, which needs no CUDA.
inline uint64_t used_bytes(const nvml::Nvml& nvml, uint32_t device) {
  return take(nvml.memory(device)).used_bytes;
}

// A child process running `body`, given one end of a socket pair. Killed and reaped with the object.
class Child {
 public:
  explicit Child(const std::function<void(int socket)>& body) {
    std::array<int, 2> ends{};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) std::abort();
    fflush(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      close(ends[0]);
      body(ends[1]);
      fflush(nullptr);
      _exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    close(ends[1]);
    socket_ = ends[0];
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)), socket_(std::exchange(other.socket_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    kill();
    reap();
    if (socket_ >= 0) close(socket_);
  }

  pid_t pid() const { return pid_; }
  int socket() const { return socket_; }
  void kill(int signal = SIGKILL) const {
    if (pid_ > 0) ::kill(pid_, signal);
  }
  // Waits until it has ended, and leaves it a zombie.
  void wait_for_end() const {
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  // Exit status, or 128 + the signal that ended it.
  int reap() {
    if (pid_ <= 0) return status_;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  void say(char word) const { ASSERT_EQ(write(socket_, &word, 1), 1); }
  // The next word, or '\0' when the child is gone or says nothing for 20 s.
  char hear() const { return hear(socket_, 20'000); }
  // In the child: until its parent speaks or is gone.
  static char hear(int socket, int timeout_ms = -1) {
    pollfd polled{.fd = socket, .events = POLLIN, .revents = 0};
    char word = '\0';
    if (poll(&polled, 1, timeout_ms) != 1 || read(socket, &word, 1) != 1) return '\0';
    return word;
  }

 private:
  pid_t pid_ = 0;
  int socket_ = -1;
  int status_ = -1;
};

inline void say(int socket, char word) {
  if (write(socket, &word, 1) != 1) _exit(2);
}

// Runs `body` in a child with these settings; its exit status, and what it wrote to stderr.
struct Ended {
  int status = -1;
  std::string stderr_text;
};
inline Ended run(const std::map<std::string, std::string>& settings, const std::function<void()>& body) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) std::abort();
  Child child([&](int) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    for (const auto& [name, value] : settings)
      setenv(name.c_str(), value.c_str(), 1);
    body();
  });
  close(ends[1]);
  Ended ended;
  std::array<char, 4096> buffer{};
  for (ssize_t length; (length = read(ends[0], buffer.data(), buffer.size())) > 0;) {
    ended.stderr_text.append(buffer.data(), static_cast<size_t>(length));
  }
  close(ends[0]);
  ended.status = child.reap();
  return ended;
}

inline int send_fd(int socket, int fd) {
  char word = 'f';
  iovec data{.iov_base = &word, .iov_len = 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  return sendmsg(socket, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

// -1 when none came.
inline int receive_fd(int socket) {
  char word = 0;
  iovec data{.iov_base = &word, .iov_len = 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return -1;
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
  return fd;
}

}  // namespace baton::test
