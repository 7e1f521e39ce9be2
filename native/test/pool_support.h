// What the tests of pools and copies share: stand-in GPUs of their own, arenas, patterns in memory.
//
// A test program that includes this runs on the stand-in driver of its own build. The driver is opened once a
// process, so its settings are made before the first use: here, when the program starts, or in a child.
#pragma once
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "native/pool/pool.h"

namespace baton::test {

inline constexpr uint64_t kMiB = 1 << 20;
inline constexpr uint64_t kSegment = 2 * kMiB;
inline constexpr uint64_t kDeviceBytes = 256 * kMiB;

// BATON_TEST_REAL_GPU=1: the tests use the GPU of this machine. Those that need faults, or GPUs of a certain size,
// are for stand-ins only.
inline bool on_real_gpu() {
  return std::getenv("BATON_TEST_REAL_GPU") != nullptr;
}

// Stand-in GPUs that only this process (and children that call nothing of this) sees. Work is done as late as a
// GPU may do it, so that a missing wait shows.
inline void use_standin(const std::string& faults = "", uint64_t device_bytes = kDeviceBytes) {
  if (on_real_gpu()) return;
  const std::string table = "/dev/shm/baton-test-" + std::to_string(getpid());
  setenv("BATON_CUDA_LIBRARY", BATON_BUILD_FOLDER "/standin/libcuda.so.1", 1);
  setenv("BATON_STANDIN_TABLE", table.c_str(), 1);
  setenv("BATON_STANDIN_DEVICES", "2", 1);
  setenv("BATON_STANDIN_BYTES", std::to_string(device_bytes).c_str(), 1);
  setenv("BATON_STANDIN_ASYNC", "lazy", 1);
  setenv("BATON_STANDIN_FAULTS", faults.c_str(), 1);
}

inline void forget_standin() {
  if (const char* table = std::getenv("BATON_STANDIN_TABLE")) unlink(table);
}

// For programs whose tests all use one set of GPUs.
class StandinEnvironment : public ::testing::Environment {
 public:
  void SetUp() override { use_standin(); }
  void TearDown() override { forget_standin(); }
};

// Runs `body` in a child of this process, which must not have used the driver yet. The child's exit status tells
// whether its expectations held; a signal is given as 128 + its number.
inline int in_child(const std::function<void()>& body, const std::string& faults = "",
                    uint64_t device_bytes = kDeviceBytes) {
  fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    use_standin(faults, device_bytes);
    body();
    forget_standin();
    fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  unlink(("/dev/shm/baton-test-" + std::to_string(child)).c_str());
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// An open memfd.
class MemoryFile {
 public:
  explicit MemoryFile(uint64_t bytes) : fd_(memfd_create("baton-test", MFD_CLOEXEC)) {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) abort();
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

template <typename T>
T take(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << to_json(result.error());
    abort();
  }
  return std::move(result).value();
}

#define BATON_EXPECT_OK(expression)                                    \
  do {                                                                 \
    const auto& baton_status_ = (expression);                          \
    EXPECT_TRUE(baton_status_.ok()) << to_json(baton_status_.error()); \
  } while (false)

template <typename T>
std::string code_of(const Result<T>& result) {
  return result ? "OK" : result.error().code;
}

inline std::unique_ptr<pool::Pool> make_pool(uint64_t arena_bytes = 64 * kMiB, uint64_t segment_bytes = kSegment) {
  pool::Options options;
  options.name = "test";
  options.segment_bytes = segment_bytes;
  options.reserve_bytes = 512 * kMiB;
  auto pool = take(pool::Pool::create(options));
  if (arena_bytes > 0) {
    const MemoryFile file(arena_bytes);
    BATON_EXPECT_OK(pool->set_arena(file.fd(), 0, arena_bytes));
  }
  return pool;
}

inline uint64_t allocate(pool::Pool& pool, uint64_t bytes) {
  return take(pool.allocate(bytes, 64));
}

// Reading and writing device memory through the driver, as the same code must do on a real GPU.
inline void write_bytes(uint64_t address, const std::vector<uint8_t>& bytes) {
  const Gpu& gpu = *take(Gpu::get(0));
  const CurrentContext current(gpu);
  BATON_EXPECT_OK(gpu.driver().cuMemcpyHtoD(address, bytes.data(), bytes.size()));
}

inline std::vector<uint8_t> read_bytes(uint64_t address, uint64_t count) {
  const Gpu& gpu = *take(Gpu::get(0));
  const CurrentContext current(gpu);
  std::vector<uint8_t> bytes(count);
  BATON_EXPECT_OK(gpu.driver().cuMemcpyDtoH(bytes.data(), address, count));
  return bytes;
}

// Bytes that tell where they belong: no two seeds, and no shift of one, look the same.
inline std::vector<uint8_t> pattern(uint64_t seed, uint64_t count) {
  std::vector<uint8_t> bytes(count);
  uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (uint64_t i = 0; i < count; i += sizeof(state)) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(bytes.data() + i, &state, std::min<uint64_t>(sizeof(state), count - i));
  }
  return bytes;
}

inline void fill(uint64_t address, uint64_t count, uint64_t seed) {
  write_bytes(address, pattern(seed, count));
}

inline bool holds(uint64_t address, uint64_t count, uint64_t seed) {
  return read_bytes(address, count) == pattern(seed, count);
}

// Whether something is mapped at `address`; never faults. On a stand-in GPU the process's own reading of the byte
// decides, whatever the driver says.
inline bool is_readable(uint64_t address) {
  if (on_real_gpu()) {
    const Gpu& gpu = *take(Gpu::get(0));
    const CurrentContext current(gpu);
    cuda::AllocationHandle handle = 0;
    if (!gpu.driver().cuMemRetainAllocationHandle(&handle, reinterpret_cast<void*>(address))) return false;
    BATON_EXPECT_OK(gpu.driver().cuMemRelease(handle));
    return true;
  }
  uint8_t byte = 0;
  iovec local{&byte, 1};
  iovec remote{reinterpret_cast<void*>(address), 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

inline uint64_t free_device_bytes() {
  const Gpu& gpu = *take(Gpu::get(0));
  const CurrentContext current(gpu);
  return take(gpu.memory()).free_bytes;
}

inline pool::RangeSet range_of(uint64_t begin, uint64_t bytes) {
  return pool::RangeSet({{begin, begin + bytes}});
}

}  // namespace baton::test
