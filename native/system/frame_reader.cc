#include "native/system/frame_reader.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "native/system/system_error.h"

namespace baton {
namespace {

Error lost(const std::string& message, const std::string& found) {
  return Error{.code = "CONNECTION_LOST",
               .message = message,
               .expected = "whole frames until the peer closes",
               .found = found,
               .action = "See what the peer said last.",
               .driver_result = {}};
}

Error miscounted(size_t expected, size_t found) {
  return Error{.code = "FRAME_DESCRIPTORS",
               .message = "A frame came with another number of descriptors than it announced.",
               .expected = std::to_string(expected),
               .found = std::to_string(found),
               .action = "Use the same version of Baton in every process of the run.",
               .driver_result = {}};
}

}  // namespace

std::span<uint8_t> FrameReader::space() {
  if (header_ && header_->payload_bytes - payload_have_ >= kBufferBytes) {
    direct_ = true;
    return {frame_.payload.get() + payload_have_, header_->payload_bytes - payload_have_};
  }
  direct_ = false;
  if (!buffer_) buffer_ = std::make_unique_for_overwrite<uint8_t[]>(kBufferBytes);
  return {buffer_.get(), kBufferBytes};
}

Result<FrameReader::Outcome> FrameReader::read_from(int socket) {
  const std::span<uint8_t> target = space();
  iovec piece{.iov_base = target.data(), .iov_len = target.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kFrameMaxDescriptors)];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t count = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0) {
    if (errno == EAGAIN || errno == EINTR) return Outcome::kBlocked;
    return lost("The connection broke.", errno_name(errno));
  }
  // Owned before anything else is looked at, so that none leaks on an error.
  std::vector<Descriptor> descriptors;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t fds = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return Error{.code = "FRAME_DESCRIPTORS_TRUNCATED",
                 .message = "Descriptors of a frame were lost on the way.",
                 .expected = "all descriptors of the frame",
                 .found = std::to_string(descriptors.size()) + " received, the rest cut off",
                 .action = "Raise the limit of open files (ulimit -n); it is the usual cause.",
                 .driver_result = {}};
  }
  if (count == 0) {
    BATON_TRY(ended());
    return Outcome::kEnd;
  }
  BATON_TRY(received(static_cast<size_t>(count), std::move(descriptors)));
  const bool between_frames = !header_ && header_have_ == 0;
  return between_frames && static_cast<size_t>(count) < target.size() ? Outcome::kPause : Outcome::kProgress;
}

Status FrameReader::received(size_t bytes, std::vector<Descriptor> descriptors) {
  std::move(descriptors.begin(), descriptors.end(), std::back_inserter(queued_));
  if (direct_) {
    payload_have_ += bytes;
    if (payload_have_ == header_->payload_bytes) BATON_TRY(complete());
  } else {
    BATON_TRY(parse(buffer_.get(), bytes));
  }
  Status queue = check_queue();
  // What is left over came with the last piece of the read: so with the frame that ended there, which is not to be
  // trusted either.
  if (!queue && !header_ && header_have_ == 0 && !complete_.empty()) complete_.pop_back();
  return queue;
}

void FrameReader::clear() {
  frame_ = Frame{};
  header_.reset();
  header_have_ = 0;
  payload_have_ = 0;
  queued_.clear();
  complete_.clear();
  buffer_.reset();
}

Status FrameReader::parse(const uint8_t* bytes, size_t count) {
  while (count > 0) {
    size_t used = 0;
    if (!header_) {
      used = std::min(count, kFrameHeaderBytes - header_have_);
      std::memcpy(header_bytes_ + header_have_, bytes, used);
      header_have_ += used;
      if (header_have_ == kFrameHeaderBytes) {
        BATON_ASSIGN(FrameHeader header, FrameHeader::decode(header_bytes_, max_payload_bytes_));
        BATON_TRY(begin(header));
      }
    } else {
      used = std::min<size_t>(count, header_->payload_bytes - payload_have_);
      std::memcpy(frame_.payload.get() + payload_have_, bytes, used);
      payload_have_ += used;
    }
    if (header_ && payload_have_ == header_->payload_bytes) BATON_TRY(complete());
    bytes += used;
    count -= used;
  }
  return {};
}

Status FrameReader::begin(FrameHeader header) {
  header_ = header;
  header_have_ = 0;
  payload_have_ = 0;
  frame_ = Frame{};
  frame_.payload_bytes = header.payload_bytes;
  frame_.payload.reset(new (std::nothrow) uint8_t[header.payload_bytes]);
  if (!frame_.payload)
    return system_error(ENOMEM, "hold a frame of " + std::to_string(header.payload_bytes) + " bytes");
  return {};
}

Status FrameReader::complete() {
  if (queued_.size() < header_->descriptors) return miscounted(header_->descriptors, queued_.size());
  for (size_t i = 0; i < header_->descriptors; ++i) {
    frame_.descriptors.push_back(std::move(queued_.front()));
    queued_.pop_front();
  }
  complete_.push_back(std::move(frame_));
  frame_ = Frame{};
  header_.reset();
  return {};
}

Status FrameReader::check_queue() const {
  if (!header_ && header_have_ > 0) {
    // How many belong here the rest of the header will say; more than fit into one frame never do.
    return queued_.size() <= kFrameMaxDescriptors ? Status{} : miscounted(kFrameMaxDescriptors, queued_.size());
  }
  const size_t expected = header_ ? header_->descriptors : 0;
  if (queued_.size() != expected) return miscounted(expected, queued_.size());
  return {};
}

Status FrameReader::ended() const {
  if (!header_ && header_have_ == 0) return {};
  const std::string where =
      header_ ? std::to_string(payload_have_) + " of " + std::to_string(header_->payload_bytes) + " payload bytes"
              : std::to_string(header_have_) + " header bytes";
  return lost("The connection ended inside a frame.", where);
}

std::optional<Frame> FrameReader::take() {
  if (complete_.empty()) return std::nullopt;
  Frame frame = std::move(complete_.front());
  complete_.pop_front();
  return frame;
}

}  // namespace baton
