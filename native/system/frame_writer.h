// Sends frames without ever waiting: what the kernel does not take is queued.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "native/system/frame.h"

namespace baton {

class FrameWriter {
 public:
  explicit FrameWriter(uint64_t max_queued_bytes) : max_queued_bytes_(max_queued_bytes) {}

  // Sends or queues one frame; neither payload nor descriptors are needed afterwards. CHANNEL_FULL,
  // FRAME_TOO_LARGE and FRAME_DESCRIPTORS leave the queue as it was.
  Status send(int socket, std::span<const uint8_t> payload, std::span<const int> descriptors);

  // Gives the kernel what it takes now.
  void flush(int socket);

  // Drops what is queued: closes descriptors at once.
  void clear();

  bool empty() const noexcept { return queue_.empty(); }
  uint64_t queued_bytes() const noexcept { return queued_bytes_; }
  // errno of a send that failed for good (the peer is gone); 0 while all is well. Later frames are dropped.
  int failure() const noexcept { return failure_; }

 private:
  // One or more frames; the descriptors belong to the first of them and go with its first byte.
  struct Chunk {
    std::vector<uint8_t> bytes;
    size_t sent = 0;
    std::vector<Descriptor> descriptors;
  };
  void fail(int number);

  static constexpr size_t kChunkBytes = 64 * 1024;

  const uint64_t max_queued_bytes_;
  std::deque<Chunk> queue_;
  uint64_t queued_bytes_ = 0;
  int failure_ = 0;
};

}  // namespace baton
