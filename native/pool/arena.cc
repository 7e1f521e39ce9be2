#include "native/pool/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "native/pool/host_pages.h"

namespace baton::pool {
namespace {

// What is brought in and registered at a time: a pause that needs room waits for no more than its share.
constexpr uint64_t kPieceBytes = 512 << 20;

Error unusable(const std::string& message, const std::string& expected, const std::string& found) {
  return Error{.code = "ARENA_UNUSABLE",
               .message = message,
               .expected = expected,
               .found = found,
               .action = "Give a memfd that is large enough, and check the memory limits of this machine or container.",
               .driver_result = std::nullopt};
}

}  // namespace

Arena::~Arena() {
  const CurrentContext current(gpu_);
  for (const Piece& piece : pieces_)
    static_cast<void>(gpu_.driver().cuMemHostUnregister(memory_ + piece.begin));
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
  std::byte* mapped = map_shared(own, offset, bytes);
  if (mapped == nullptr) {
    const std::string reason = std::strerror(errno);
    close(own);
    return unusable("The arena cannot be mapped.", std::to_string(bytes) + " bytes of address space", reason);
  }
  // A forked child (a data loader) must not hold the arena, nor copy pages of it.
  madvise(mapped, bytes, MADV_DONTFORK);
  return std::shared_ptr<Arena>(new Arena(gpu, own, offset, mapped, bytes));
}

Status Arena::grow(uint64_t bytes) {
  // Whole pages only, as the driver registers them.
  const uint64_t most = capacity_bytes_ / page_bytes() * page_bytes();
  const uint64_t wanted = bytes > most ? most : round_up(bytes, page_bytes());
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
  const cuda::CudaDriver& driver = gpu_.driver();
  BATON_TRY(driver.cuMemHostRegister(memory, bytes, cuda::kHostRegisterPortable | cuda::kHostRegisterDeviceMap));
  cuda::DevicePointer device = 0;
  const Status readable = driver.cuMemHostGetDevicePointer(&device, memory, 0);
  const std::lock_guard lock(mutex_);
  pieces_.push_back({begin, end, readable ? std::optional(device) : std::nullopt});
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
  return pieces_.empty() ? 0 : pieces_.back().end;
}

uint64_t Arena::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return pieces_.empty() ? 0 : pieces_.back().end / kAlignmentBytes * kAlignmentBytes - free_.bytes();
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
      const uint64_t end = std::min(lowest.end, piece_at(begin).end);
      extents.push_back({begin, std::min(left, end - begin)});
      left -= extents.back().bytes;
      begin = end;
    }
    space -= lowest.bytes();
  }
  return extents;
}

const Arena::Piece& Arena::piece_at(uint64_t offset) const {
  return *std::upper_bound(pieces_.begin(), pieces_.end(), offset,
                           [](uint64_t wanted, const Piece& piece) { return wanted < piece.end; });
}

std::optional<uint64_t> Arena::device_address(uint64_t offset) const {
  const std::lock_guard lock(mutex_);
  const Piece& piece = piece_at(offset);
  if (!piece.device) return std::nullopt;
  return *piece.device + (offset - piece.begin);
}

std::vector<Extent> Arena::extents_of(uint64_t offset, uint64_t bytes) const {
  const std::lock_guard lock(mutex_);
  std::vector<Extent> extents;
  for (uint64_t begin = offset; begin < offset + bytes;) {
    const uint64_t end = std::min(offset + bytes, piece_at(begin).end);
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
