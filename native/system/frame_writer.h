// Sends frames without ever waiting: what the kernel does not take is queued.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "native/system/frame.h"

namespace baton {

// A part of a payload.
struct FramePiece {
  std::span<const uint8_t> bytes;
  // Keeps the bytes where they are and as they are; nullptr: what has to wait is copied.
  std::shared_ptr<const void> owner;
};

// Most pieces of one payload.
inline constexpr size_t kFrameMaxPieces = 32;

class FrameWriter {
 public:
  explicit FrameWriter(uint64_t max_queued_bytes) : max_queued_bytes_(max_queued_bytes) {}

  // Sends or queues one frame; the descriptors are not needed afterwards, and of the pieces only those with an owner,
  // which is let go when the kernel has their bytes. CHANNEL_FULL, FRAME_TOO_LARGE, FRAME_PIECES and
  // FRAME_DESCRIPTORS leave the queue as it was.
  Status send(int socket, std::span<const FramePiece> pieces, std::span<const int> descriptors);

  // Gives the kernel what it takes now.
  void flush(int socket);

  // Drops what is queued: closes descriptors at once.
  void clear();

  bool empty() const noexcept { return queue_.empty(); }
  uint64_t queued_bytes() const noexcept { return queued_bytes_; }
  // errno of a send that failed for good (the peer is gone); 0 while all is well. Later frames are dropped.
  int failure() const noexcept { return failure_; }

 private:
  // One or more frames, or a piece of one that somebody else owns; the descriptors belong to the first frame and go
  // with its first byte.
  struct Chunk {
    std::vector<uint8_t> copied;
    FramePiece borrowed;
    size_t sent = 0;
    std::vector<Descriptor> descriptors;

    std::span<const uint8_t> bytes() const {
      return borrowed.owner ? borrowed.bytes : std::span<const uint8_t>(copied);
    }
  };
  void queue(const FramePiece& piece);
  void fail(int number);

  static constexpr size_t kChunkBytes = 64 * 1024;

  const uint64_t max_queued_bytes_;
  std::deque<Chunk> queue_;
  uint64_t queued_bytes_ = 0;
  int failure_ = 0;
};

}  // namespace baton
