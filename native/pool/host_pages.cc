#include "native/pool/host_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace baton::pool {
namespace {

constexpr uint64_t kBytesPerThread = 32 << 20;
constexpr unsigned kMostThreads = 16;
// What x86-64 and AArch64 with pages of 4 KiB have.
constexpr uint64_t kLargePageBytes = 2 << 20;

// Of Linux 5.14 and 6.1; the C library may be older.
constexpr int kPopulateWrite = 23;
constexpr int kCollapse = 25;

// Several threads bring pages in several times as fast. The first result that is not 0, or 0.
template <typename Work>
int in_parallel(std::byte* begin, uint64_t bytes, uint64_t unit, const Work& work) {
  const uint64_t wanted = (bytes + kBytesPerThread - 1) / kBytesPerThread;
  const uint64_t threads =
      std::clamp<uint64_t>(wanted, 1, std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads));
  const uint64_t share = round_up((bytes + threads - 1) / threads, unit);
  std::vector<int> results(threads, 0);
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < threads && i * share < bytes; ++i) {
    const auto part = [&, i] { results[i] = work(begin + i * share, std::min(share, bytes - i * share)); };
    try {
      helpers.emplace_back(part);
    } catch (const std::system_error&) {
      part();  // a limit of threads is no reason to fail
    }
  }
  results[0] = work(begin, std::min(share, bytes));
  for (std::thread& helper : helpers)
    helper.join();
  const auto failed = std::find_if(results.begin(), results.end(), [](int result) { return result != 0; });
  return failed == results.end() ? 0 : *failed;
}

// By the kernel in one call, which says so when there is no memory; where the kernel is too old for that, -1.
int populate(std::byte* begin, uint64_t bytes) {
  if (madvise(begin, bytes, kPopulateWrite) == 0) return 0;
  return errno == EINVAL ? -1 : errno;
}

// Looking for large pages takes long where there are none, so one refusal is enough.
std::atomic<bool> large_pages_come = true;

// Large pages, whatever is set for files in general; none where the kernel cannot or will not. It makes them only of
// what has some page already, and may have left some out: the rest comes in small ones.
int populate_large(std::byte* begin, uint64_t bytes) {
  if (large_pages_come) {
    for (uint64_t offset = 0; offset < bytes; offset += kLargePageBytes) {
      if (const int error = populate(begin + offset, page_bytes()); error != 0) return error;
    }
    if (madvise(begin, bytes, kCollapse) != 0 && (errno == EINVAL || errno == ENOMEM)) large_pages_come = false;
  }
  return populate(begin, bytes);
}

int touch(std::byte* begin, uint64_t bytes) {
  for (uint64_t offset = 0; offset < bytes; offset += page_bytes())
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(begin + offset), 0, __ATOMIC_RELAXED);
  return 0;
}

// Whether the file has no page there yet. Small pages would be copied into large ones, which is slow.
bool is_hole(int fd, uint64_t offset, uint64_t bytes) {
  const off_t data = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  return data < 0 ? errno == ENXIO : static_cast<uint64_t>(data) >= offset + bytes;
}

int populate_all(int fd, uint64_t offset, std::byte* memory, uint64_t bytes) {
  const auto address = reinterpret_cast<uint64_t>(memory);
  const uint64_t head = std::min(bytes, round_up(address, kLargePageBytes) - address);
  const uint64_t large = (bytes - head) / kLargePageBytes * kLargePageBytes;
  if (large == 0 || !is_hole(fd, offset + head, large)) return in_parallel(memory, bytes, page_bytes(), populate);
  if (const int error = in_parallel(memory + head, large, kLargePageBytes, populate_large); error != 0) return error;
  for (const auto& [begin, end] : {std::pair(uint64_t{0}, head), std::pair(head + large, bytes)}) {
    if (begin == end) continue;
    if (const int error = populate(memory + begin, end - begin); error != 0) return error;
  }
  return 0;
}

}  // namespace

uint64_t page_bytes() {
  return static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::byte* map_shared(int fd, uint64_t offset, uint64_t bytes) {
  const uint64_t room = bytes + kLargePageBytes;
  void* reserved = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(reserved);
  // An address and its place in the file agree in what is less than a large page.
  const uint64_t skip = (offset - reinterpret_cast<uint64_t>(begin)) % kLargePageBytes;
  void* mapped = mmap(begin + skip, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
                      static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    const int reason = errno;
    munmap(reserved, room);
    errno = reason;
    return nullptr;
  }
  const uint64_t end = round_up(skip + bytes, page_bytes());
  if (skip > 0) munmap(begin, skip);
  if (end < room) munmap(begin + end, room - end);
  return static_cast<std::byte*>(mapped);
}

int bring_in(int fd, uint64_t offset, std::byte* memory, uint64_t bytes) {
  const int populated = populate_all(fd, offset, memory, bytes);
  if (populated >= 0) return populated;
  // Without memory behind it, touching would be SIGBUS. EOPNOTSUPP: not a file that can tell.
  if (fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP) return errno;
  return in_parallel(memory, bytes, page_bytes(), touch);
}

}  // namespace baton::pool
