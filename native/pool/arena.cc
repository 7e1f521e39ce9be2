#include "native/pool/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

namespace baton::pool {
namespace {

constexpr uint64_t kBytesPerThread = 64 << 20;
constexpr unsigned kMostThreads = 16;

Error unusable(const std::string& message, const std::string& expected, const std::string& found) {
  return Error{.code = "ARENA_UNUSABLE",
               .message = message,
               .expected = expected,
               .found = found,
               .action = "Give a memfd that is large enough, and check the memory limits of this machine or container.",
               .driver_result = std::nullopt};
}

// Brings pages in without changing what they hold.
void touch(std::byte* begin, uint64_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(begin, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (uint64_t offset = 0; offset < bytes; offset += page) {
    auto* byte = reinterpret_cast<unsigned char*>(begin + offset);
    __atomic_fetch_or(byte, 0, __ATOMIC_RELAXED);
  }
}

// Registering would bring the pages in one by one; several threads do it several times faster.
void touch_in_parallel(std::byte* begin, uint64_t bytes) {
  const uint64_t wanted = (bytes + kBytesPerThread - 1) / kBytesPerThread;
  const uint64_t threads =
      std::clamp<uint64_t>(wanted, 1, std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads));
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t share = (bytes / threads + page - 1) / page * page;
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < threads && i * share < bytes; ++i) {
    helpers.emplace_back(touch, begin + i * share, std::min(share, bytes - i * share));
  }
  touch(begin, std::min(share, bytes));
  for (std::thread& helper : helpers)
    helper.join();
}

}  // namespace

Arena::Arena(const Gpu& gpu, int fd, std::byte* memory, uint64_t bytes)
    : gpu_(gpu), fd_(fd), memory_(memory), bytes_(bytes) {
  free_.insert({0, bytes / kAlignmentBytes * kAlignmentBytes});
}

Arena::~Arena() {
  if (registered_) {
    const CurrentContext current(gpu_);
    static_cast<void>(gpu_.driver().cuMemHostUnregister(memory_));
  }
  munmap(memory_, bytes_);
  close(fd_);
}

Result<std::shared_ptr<Arena>> Arena::open(const Gpu& gpu, int fd, uint64_t offset, uint64_t bytes) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (bytes == 0 || offset % page != 0) {
    return unusable("The arena's place in its memfd is not usable.",
                    "bytes > 0 at a multiple of " + std::to_string(page),
                    std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
  struct stat status{};
  if (fstat(fd, &status) != 0) {
    return unusable("The arena's descriptor is not usable.", "an open memfd", std::strerror(errno));
  }
  // Past its end a mapping is SIGBUS, so that is found here.
  if (offset + bytes < offset || static_cast<uint64_t>(status.st_size) < offset + bytes) {
    return unusable("The arena's memfd is too small.",
                    std::to_string(offset) + " + " + std::to_string(bytes) + " bytes",
                    std::to_string(status.st_size) + " bytes");
  }
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0)
    return unusable("The arena's descriptor cannot be duplicated.", "a free descriptor", std::strerror(errno));
  // Without memory behind it, writing would be SIGBUS too. EOPNOTSUPP: not a file that can tell.
  if (fallocate(own, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP) {
    const std::string reason = std::strerror(errno);
    close(own);
    return unusable("There is not enough host memory for the arena.", std::to_string(bytes) + " bytes", reason);
  }
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, own, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    const std::string reason = std::strerror(errno);
    close(own);
    return unusable("The arena cannot be mapped.", std::to_string(bytes) + " bytes of address space", reason);
  }
  std::shared_ptr<Arena> arena(new Arena(gpu, own, static_cast<std::byte*>(mapped), bytes));
  // A forked child (a data loader) must not hold the arena, nor copy pages of it.
  madvise(mapped, bytes, MADV_DONTFORK);
  touch_in_parallel(arena->memory_, bytes);
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  BATON_TRY(gpu.driver().cuMemHostRegister(mapped, bytes, cuda::kHostRegisterPortable));
  arena->registered_ = true;
  return arena;
}

uint64_t Arena::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_ / kAlignmentBytes * kAlignmentBytes - free_.bytes();
}

uint64_t Arena::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return free_.bytes();
}

std::optional<std::vector<Extent>> Arena::take(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t wanted = space_of(bytes);
  if (free_.bytes() < wanted) return std::nullopt;
  std::vector<Extent> extents;
  uint64_t space = wanted;
  uint64_t left = bytes;
  while (space > 0) {
    const Range taken = *free_.take_lowest(space);
    extents.push_back({taken.begin, std::min(left, taken.bytes())});
    space -= taken.bytes();
    left -= extents.back().bytes;
  }
  return extents;
}

void Arena::give_back(const std::vector<Extent>& extents) {
  const std::lock_guard lock(mutex_);
  for (const Extent& extent : extents)
    free_.insert({extent.offset, extent.offset + space_of(extent.bytes)});
}

}  // namespace baton::pool
