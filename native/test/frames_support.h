// What the tests of both ends of a connection share: a pair of sockets, and descriptors that can be told apart.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "native/system/frame_reader.h"

namespace baton::test {

inline constexpr uint64_t kLimit = 1 << 20;

struct Pair {
  Pair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    ours = Descriptor(fds[0]);
    theirs = Descriptor(fds[1]);
  }
  Descriptor ours;
  Descriptor theirs;
};

inline Descriptor numbered_memory(uint64_t number) {
  Descriptor memory(::memfd_create("numbered", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(memory.get(), static_cast<off_t>(number)), 0);
  return memory;
}

inline uint64_t number_of(const Descriptor& memory) {
  struct stat status{};
  EXPECT_EQ(::fstat(memory.get(), &status), 0);
  return static_cast<uint64_t>(status.st_size);
}

inline size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

inline std::string text_of(const Frame& frame) {
  return {reinterpret_cast<const char*>(frame.payload.get()), frame.payload_bytes};
}

// Reads until nothing is left to read; the error, if there was one.
inline std::optional<Error> read_all(FrameReader& reader, int socket, std::vector<Frame>& frames) {
  for (;;) {
    auto outcome = reader.read_from(socket);
    while (auto frame = reader.take())
      frames.push_back(std::move(*frame));
    if (!outcome) return outcome.error();
    if (*outcome == FrameReader::Outcome::kBlocked || *outcome == FrameReader::Outcome::kEnd) return std::nullopt;
  }
}

}  // namespace baton::test
