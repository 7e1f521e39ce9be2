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

constexpr uint64_t kBytesPerThread = 32 << 20;
constexpr unsigned kMostThreads = 16;
// What is brought in and registered at a time: a pause that needs room waits for no more than its share.
constexpr uint64_t kPieceBytes = 512 << 20;

uint64_t page_bytes() {
  return static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

Error unusable(const std::string& message, const std::string& expected, const std::string& found) {
  return Error{.code = "ARENA_UNUSABLE",
               .message = message,
               .expected = expected,
               .found = found,
               .action = "Give a memfd that is large enough, and check the memory limits of this machine or container.",
               .driver_result = std::nullopt};
}

// Brings pages in without changing what they hold; the errno of a page that cannot be had, or 0. By the kernel in one
// call, which says so when there is no memory; where the kernel is too old for that, -1.
int populate(std::byte* begin, uint64_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(begin, bytes, MADV_POPULATE_WRITE) == 0) return 0;
  return errno == EINVAL ? -1 : errno;
#else
  return -1;
#endif
}

// Registering would bring the pages in one by one, and so would reserving them in the file; several threads that touch
// them are several times faster.
template <typename Work>
int in_parallel(std::byte* begin, uint64_t bytes, const Work& work) {
  const uint64_t wanted = (bytes + kBytesPerThread - 1) / kBytesPerThread;
  const uint64_t threads =
      std::clamp<uint64_t>(wanted, 1, std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads));
  const uint64_t share = round_up((bytes + threads - 1) / threads, page_bytes());
  std::vector<int> results(threads, 0);
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < threads && i * share < bytes; ++i) {
    helpers.emplace_back([&, i] { results[i] = work(begin + i * share, std::min(share, bytes - i * share)); });
  }
  results[0] = work(begin, std::min(share, bytes));
  for (std::thread& helper : helpers)
    helper.join();
  const auto failed = std::find_if(results.begin(), results.end(), [](int result) { return result != 0; });
  return failed == results.end() ? 0 : *failed;
}

int touch(std::byte* begin, uint64_t bytes) {
  for (uint64_t offset = 0; offset < bytes; offset += page_bytes())
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(begin + offset), 0, __ATOMIC_RELAXED);
  return 0;
}

// 0, or an errno.
int bring_in(int fd, uint64_t offset, std::byte* memory, uint64_t bytes) {
  const int populated = in_parallel(memory, bytes, populate);
  if (populated >= 0) return populated;
  // Without memory behind it, touching would be SIGBUS. EOPNOTSUPP: not a file that can tell.
  if (fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP) return errno;
  return in_parallel(memory, bytes, touch);
}

}  // namespace

Arena::~Arena() {
  const CurrentContext current(gpu_);
  uint64_t begin = 0;
  for (const uint64_t end : piece_ends_) {
    static_cast<void>(gpu_.driver().cuMemHostUnregister(memory_ + begin));
    begin = end;
  }
  munmap(memory_, capacity_bytes_);
  close(fd_);
}

Result<std::shared_ptr<Arena>> Arena::open(const Gpu& gpu, int fd, uint64_t offset, uint64_t bytes) {
  if (bytes == 0 || offset % page_bytes() != 0) {
    return unusable("The arena's place in its memfd is not usable.",
                    "bytes > 0 at a multiple of " + std::to_string(page_bytes()),
                    std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return unusable("The arena's descriptor cannot be duplicated.", "an open memfd", std::strerror(errno));
  void* mapped =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, own, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    const std::string reason = std::strerror(errno);
    close(own);
    return unusable("The arena cannot be mapped.", std::to_string(bytes) + " bytes of address space", reason);
  }
  // A forked child (a data loader) must not hold the arena, nor copy pages of it.
  madvise(mapped, bytes, MADV_DONTFORK);
  return std::shared_ptr<Arena>(new Arena(gpu, own, offset, static_cast<std::byte*>(mapped), bytes));
}

Status Arena::grow(uint64_t bytes) {
  const uint64_t wanted = bytes > capacity_bytes_ ? capacity_bytes_ : round_up(bytes, page_bytes());
  while (this->bytes() < wanted) {
    // A piece at a time: whoever needs only a little gets its turn.
    const std::lock_guard growing(grow_mutex_);
    const uint64_t have = this->bytes();
    if (have < wanted) BATON_TRY(add_piece(have, std::min({have + kPieceBytes, wanted, capacity_bytes_})));
  }
  return {};
}

Status Arena::add_piece(uint64_t begin, uint64_t end) {
  const uint64_t bytes = end - begin;
  std::byte* memory = memory_ + begin;
  struct stat status{};
  const uint64_t needed = offset_ + end;
  if (fstat(fd_, &status) != 0 ||
      (static_cast<uint64_t>(status.st_size) < needed && ftruncate(fd_, static_cast<off_t>(needed)) != 0)) {
    return unusable("The arena's memfd cannot grow.", std::to_string(needed) + " bytes", std::strerror(errno));
  }
  if (const int error = bring_in(fd_, offset_ + begin, memory, bytes); error != 0) {
    return unusable("There is not enough host memory for the arena.", std::to_string(bytes) + " more bytes",
                    std::strerror(error));
  }
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  BATON_TRY(gpu_.driver().cuMemHostRegister(memory, bytes, cuda::kHostRegisterPortable));
  const std::lock_guard lock(mutex_);
  piece_ends_.push_back(end);
  free_.insert({begin, end / kAlignmentBytes * kAlignmentBytes});
  return {};
}

Status Arena::make_room(uint64_t bytes) {
  const uint64_t wanted = space_of(bytes);
  const uint64_t free = free_bytes();
  return wanted <= free ? Status() : grow(this->bytes() + (wanted - free));
}

uint64_t Arena::bytes() const {
  const std::lock_guard lock(mutex_);
  return piece_ends_.empty() ? 0 : piece_ends_.back();
}

uint64_t Arena::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return piece_ends_.empty() ? 0 : piece_ends_.back() / kAlignmentBytes * kAlignmentBytes - free_.bytes();
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
    const Range lowest = *free_.take_lowest(space);
    for (uint64_t begin = lowest.begin; begin < lowest.end;) {
      const uint64_t end = std::min(lowest.end, *std::upper_bound(piece_ends_.begin(), piece_ends_.end(), begin));
      extents.push_back({begin, std::min(left, end - begin)});
      left -= extents.back().bytes;
      begin = end;
    }
    space -= lowest.bytes();
  }
  return extents;
}

std::vector<Extent> Arena::extents_of(uint64_t offset, uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  std::vector<Extent> extents;
  for (uint64_t begin = offset; begin < offset + bytes;) {
    const uint64_t end = std::min(offset + bytes, *std::upper_bound(piece_ends_.begin(), piece_ends_.end(), begin));
    extents.push_back({begin, end - begin});
    begin = end;
  }
  return extents;
}

void Arena::give_back(const std::vector<Extent>& extents) {
  const std::lock_guard lock(mutex_);
  for (const Extent& extent : extents)
    free_.insert({extent.offset, extent.offset + space_of(extent.bytes)});
}

}  // namespace baton::pool
