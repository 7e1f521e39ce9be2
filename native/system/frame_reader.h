// Puts frames together from what a socket gives, in whatever pieces it comes.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "native/system/frame.h"

namespace baton {

// Descriptors arrive with the first byte of their frame, or earlier by one read (the kernel may hand the end of the
// frame before out in the same read), never later. So after each read the queue must hold exactly what the frame
// that has begun announces, nothing between frames, and is open only while a header is cut in two.
//
// No I/O here: read_from is a shell around space() and received().
class FrameReader {
 public:
  explicit FrameReader(uint64_t max_payload_bytes) : max_payload_bytes_(max_payload_bytes) {}

  enum class Outcome { kProgress, kPause, kBlocked, kEnd };
  // One recvmsg. kEnd: the peer closed between two frames. kPause: a frame has ended there and less came than there
  // was room for, so most likely nothing more is waiting, and asking again would cost a call for each small frame.
  // Errors end the connection: FRAME_*, CONNECTION_LOST.
  Result<Outcome> read_from(int socket);

  // The oldest complete frame.
  std::optional<Frame> take();

  // Lets go of all that has been received and not taken: closes descriptors at once.
  void clear();

  // Where the next bytes belong; never empty.
  std::span<uint8_t> space();
  // `bytes` have been put into space(), and these descriptors came with them.
  Status received(size_t bytes, std::vector<Descriptor> descriptors);
  // What the end of the connection means now: an error inside a frame.
  Status ended() const;

 private:
  Status parse(const uint8_t* bytes, size_t count);
  Status begin(FrameHeader header);
  Status complete();
  Status check_queue() const;

  static constexpr size_t kBufferBytes = 64 * 1024;

  const uint64_t max_payload_bytes_;
  std::unique_ptr<uint8_t[]> buffer_;
  uint8_t header_bytes_[kFrameHeaderBytes] = {};
  size_t header_have_ = 0;  // of header_bytes_; reset when the frame begins
  std::optional<FrameHeader> header_;
  Frame frame_;
  size_t payload_have_ = 0;
  // space() gave a piece of the payload itself, so that large frames are not copied.
  bool direct_ = false;
  std::deque<Descriptor> queued_;
  std::deque<Frame> complete_;
};

}  // namespace baton
