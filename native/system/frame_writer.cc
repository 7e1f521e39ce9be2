#include "native/system/frame_writer.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#include "native/system/system_error.h"

namespace baton {
namespace {

// The bytes that the kernel took, or -errno.
ssize_t send_now(int socket, iovec* pieces, size_t count, std::span<const int> descriptors) {
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kFrameMaxDescriptors)] = {};
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(part), descriptors.data(), descriptors.size_bytes());
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    if (errno != EINTR) return -errno;
  }
}

// ETOOMANYREFS: this user has as many descriptors under way as it may have open; the peer must read first.
bool is_temporary(ssize_t result) {
  return result == -EAGAIN || result == -ENOBUFS || result == -ETOOMANYREFS;
}

Error bad_descriptor(int fd) {
  return Error{.code = "FRAME_DESCRIPTORS",
               .message = "A descriptor of a frame is not open.",
               .expected = "open descriptors",
               .found = std::to_string(fd),
               .action = "Close descriptors after send, not before.",
               .driver_result = {}};
}

}  // namespace

Status FrameWriter::send(int socket, std::span<const FramePiece> pieces, std::span<const int> descriptors) {
  if (pieces.size() > kFrameMaxPieces) {
    return Error{.code = "FRAME_PIECES",
                 .message = "A frame has too many pieces.",
                 .expected = "at most " + std::to_string(kFrameMaxPieces),
                 .found = std::to_string(pieces.size()),
                 .action = "Join small pieces.",
                 .driver_result = {}};
  }
  size_t payload_bytes = 0;
  for (const FramePiece& piece : pieces)
    payload_bytes += piece.bytes.size();
  if (payload_bytes > std::numeric_limits<uint32_t>::max()) {
    return Error{.code = "FRAME_TOO_LARGE",
                 .message = "A frame is too large.",
                 .expected = "less than 4 GiB",
                 .found = std::to_string(payload_bytes) + " bytes",
                 .action = "Send several frames.",
                 .driver_result = {}};
  }
  if (descriptors.size() > kFrameMaxDescriptors) {
    return Error{.code = "FRAME_DESCRIPTORS",
                 .message = "A frame has too many descriptors.",
                 .expected = "at most " + std::to_string(kFrameMaxDescriptors),
                 .found = std::to_string(descriptors.size()),
                 .action = "Send them in several frames.",
                 .driver_result = {}};
  }
  for (int fd : descriptors) {
    if (::fcntl(fd, F_GETFD) < 0) return bad_descriptor(fd);
  }
  if (failure_ != 0) return {};

  uint8_t header[kFrameHeaderBytes];
  FrameHeader{static_cast<uint32_t>(payload_bytes), static_cast<uint8_t>(descriptors.size())}.encode(header);
  size_t sent = 0;
  if (queue_.empty()) {
    iovec parts[1 + kFrameMaxPieces] = {{.iov_base = header, .iov_len = sizeof(header)}};
    for (size_t i = 0; i < pieces.size(); ++i) {
      parts[1 + i] = {.iov_base = const_cast<uint8_t*>(pieces[i].bytes.data()), .iov_len = pieces[i].bytes.size()};
    }
    const ssize_t result = send_now(socket, parts, 1 + pieces.size(), descriptors);
    if (result < 0 && !is_temporary(result)) {
      fail(static_cast<int>(-result));
      return {};
    }
    sent = result < 0 ? 0 : static_cast<size_t>(result);
    if (sent == sizeof(header) + payload_bytes) return {};
  }

  const size_t left = sizeof(header) + payload_bytes - sent;
  // A frame that has begun must go on, whatever the limit says.
  if (sent == 0 && queued_bytes_ + left > max_queued_bytes_) {
    return Error{.code = "CHANNEL_FULL",
                 .message = "The peer does not read what it is sent.",
                 .expected = "at most " + std::to_string(max_queued_bytes_) + " bytes waiting",
                 .found = std::to_string(queued_bytes_) + " bytes waiting, " + std::to_string(left) + " more to send",
                 .action = "See what the peer is doing.",
                 .driver_result = {}};
  }
  std::vector<Descriptor> kept;
  if (sent == 0) {
    for (int fd : descriptors) {
      Descriptor copy = Descriptor::duplicate(fd);
      if (!copy) return system_error(errno, "duplicate a descriptor");
      kept.push_back(std::move(copy));
    }
  }
  if (!kept.empty()) {
    // A chunk of its own, since they go with the first byte.
    queue_.emplace_back();
    queue_.back().descriptors = std::move(kept);
  }
  const auto queue_from = [&](FramePiece piece) {
    const size_t skipped = std::min(sent, piece.bytes.size());
    sent -= skipped;
    piece.bytes = piece.bytes.subspan(skipped);
    if (!piece.bytes.empty()) queue(piece);
  };
  queue_from({.bytes = header, .owner = nullptr});
  for (const FramePiece& piece : pieces)
    queue_from(piece);
  queued_bytes_ += left;
  return {};
}

void FrameWriter::queue(const FramePiece& piece) {
  if (piece.owner) {
    queue_.emplace_back().borrowed = piece;
    return;
  }
  // Small frames share a chunk.
  if (queue_.empty() || queue_.back().borrowed.owner ||
      (!queue_.back().copied.empty() && queue_.back().copied.size() + piece.bytes.size() > kChunkBytes)) {
    queue_.emplace_back();
  }
  std::vector<uint8_t>& copied = queue_.back().copied;
  copied.insert(copied.end(), piece.bytes.begin(), piece.bytes.end());
}

void FrameWriter::flush(int socket) {
  while (!queue_.empty()) {
    Chunk& chunk = queue_.front();
    const std::span<const uint8_t> rest = chunk.bytes().subspan(chunk.sent);
    iovec piece{.iov_base = const_cast<uint8_t*>(rest.data()), .iov_len = rest.size()};
    std::vector<int> fds;
    for (const Descriptor& descriptor : chunk.descriptors)
      fds.push_back(descriptor.get());
    const ssize_t result = send_now(socket, &piece, 1, fds);
    if (result < 0) {
      if (!is_temporary(result)) fail(static_cast<int>(-result));
      return;
    }
    // They went with the first byte.
    chunk.descriptors.clear();
    chunk.sent += static_cast<size_t>(result);
    queued_bytes_ -= static_cast<uint64_t>(result);
    if (static_cast<size_t>(result) < rest.size()) return;
    queue_.pop_front();
  }
}

void FrameWriter::fail(int number) {
  failure_ = number;
  clear();
}

void FrameWriter::clear() {
  queue_.clear();
  queued_bytes_ = 0;
}

}  // namespace baton
