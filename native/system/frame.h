// The frame on the wire: an 8-byte header, a payload, and descriptors that travel with the header's first byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "native/driver/error.h"
#include "native/system/descriptor.h"

namespace baton {

inline constexpr size_t kFrameHeaderBytes = 8;
inline constexpr uint8_t kFrameVersion = 1;
// SCM_MAX_FD of Linux: one more and sendmsg answers EINVAL.
inline constexpr size_t kFrameMaxDescriptors = 253;

struct FrameHeader {
  uint32_t payload_bytes = 0;
  uint8_t descriptors = 0;

  void encode(uint8_t (&out)[kFrameHeaderBytes]) const noexcept;
  // FRAME_HEADER when it is not a header of ours, FRAME_TOO_LARGE when it announces more than the limit.
  static Result<FrameHeader> decode(const uint8_t* bytes, uint64_t max_payload_bytes);
};

// A received frame. The payload is not initialised memory until it is filled.
struct Frame {
  std::unique_ptr<uint8_t[]> payload;
  size_t payload_bytes = 0;
  std::vector<Descriptor> descriptors;
};

}  // namespace baton
