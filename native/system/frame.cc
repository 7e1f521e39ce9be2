#include "native/system/frame.h"

#include <string>

namespace baton {

void FrameHeader::encode(uint8_t (&out)[kFrameHeaderBytes]) const noexcept {
  for (int i = 0; i < 4; ++i)
    out[i] = static_cast<uint8_t>(payload_bytes >> (8 * i));
  out[4] = kFrameVersion;
  out[5] = descriptors;
  out[6] = 0;
  out[7] = 0;
}

Result<FrameHeader> FrameHeader::decode(const uint8_t* bytes, uint64_t max_payload_bytes) {
  FrameHeader header;
  for (int i = 0; i < 4; ++i)
    header.payload_bytes |= static_cast<uint32_t>(bytes[i]) << (8 * i);
  header.descriptors = bytes[5];
  const bool sound = bytes[4] == kFrameVersion && bytes[6] == 0 && bytes[7] == 0;
  if (!sound || header.descriptors > kFrameMaxDescriptors) {
    std::string found = "bytes";
    for (size_t i = 0; i < kFrameHeaderBytes; ++i)
      found += " " + std::to_string(bytes[i]);
    return Error{.code = "FRAME_HEADER",
                 .message = "The peer sent something that is not a frame.",
                 .expected = "a header of version " + std::to_string(kFrameVersion) + " with at most " +
                             std::to_string(kFrameMaxDescriptors) + " descriptors",
                 .found = found,
                 .action = "Use the same version of Baton in every process of the run.",
                 .driver_result = {}};
  }
  if (header.payload_bytes > max_payload_bytes) {
    return Error{.code = "FRAME_TOO_LARGE",
                 .message = "The peer announced a frame that is too large.",
                 .expected = "at most " + std::to_string(max_payload_bytes) + " bytes",
                 .found = std::to_string(header.payload_bytes) + " bytes",
                 .action = "Use the same version of Baton in every process of the run.",
                 .driver_result = {}};
  }
  return header;
}

}  // namespace baton
