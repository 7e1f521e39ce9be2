// Frames as they arrive through real sockets: whatever the pieces, whatever the peer sends.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "native/system/frame_reader.h"
#include "native/system/frame_writer.h"
#include "native/test/frames_support.h"

namespace baton::test {
namespace {

std::vector<uint8_t> frame_bytes(const std::string& payload, uint8_t descriptors = 0) {
  uint8_t header[kFrameHeaderBytes];
  FrameHeader{static_cast<uint32_t>(payload.size()), descriptors}.encode(header);
  std::vector<uint8_t> bytes(header, header + sizeof(header));
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

// A peer that is not ours may send anything; so this does not use FrameWriter.
void raw_send(int socket, std::span<const uint8_t> bytes, const std::vector<int>& fds = {}) {
  iovec piece{.iov_base = const_cast<uint8_t*>(bytes.data()), .iov_len = bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size() * sizeof(int));
  }
  ASSERT_EQ(::sendmsg(socket, &message, 0), static_cast<ssize_t>(bytes.size()));
}

TEST(Frames, PauseOnlyWhereAFrameEndsAndNothingIsLeft) {
  const Pair pair;
  FrameReader reader(kLimit);
  const auto outcome = [&] {
    const auto result = reader.read_from(pair.ours.get());
    EXPECT_TRUE(result);
    return result ? *result : FrameReader::Outcome::kEnd;
  };
  const std::vector<uint8_t> frame = frame_bytes("one call is enough");
  raw_send(pair.theirs.get(), frame);
  EXPECT_EQ(outcome(), FrameReader::Outcome::kPause);
  EXPECT_TRUE(reader.take());
  EXPECT_EQ(outcome(), FrameReader::Outcome::kBlocked);
  raw_send(pair.theirs.get(), std::span(frame).first(kFrameHeaderBytes + 1));
  EXPECT_EQ(outcome(), FrameReader::Outcome::kProgress);
  raw_send(pair.theirs.get(), std::span(frame).subspan(kFrameHeaderBytes + 1));
  EXPECT_EQ(outcome(), FrameReader::Outcome::kPause);
  EXPECT_TRUE(reader.take());
  // As much as there is room for: there may be more.
  raw_send(pair.theirs.get(), frame_bytes(std::string(64 * 1024 - kFrameHeaderBytes, 'x')));
  EXPECT_EQ(outcome(), FrameReader::Outcome::kProgress);
}

TEST(Frames, ArriveWhereverTheyAreCut) {
  std::vector<uint8_t> stream = frame_bytes("first");
  const auto empty = frame_bytes("");
  const auto last = frame_bytes("and the last");
  stream.insert(stream.end(), empty.begin(), empty.end());
  stream.insert(stream.end(), last.begin(), last.end());
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    const Pair pair;
    FrameReader reader(kLimit);
    std::vector<Frame> frames;
    if (cut > 0) raw_send(pair.theirs.get(), {stream.data(), cut});
    ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
    if (cut < stream.size()) raw_send(pair.theirs.get(), {stream.data() + cut, stream.size() - cut});
    ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
    ASSERT_EQ(frames.size(), 3U) << "cut at " << cut;
    EXPECT_EQ(text_of(frames[0]), "first");
    EXPECT_EQ(text_of(frames[1]), "");
    EXPECT_EQ(text_of(frames[2]), "and the last");
  }
}

TEST(Frames, DescriptorsBelongToTheirFrameWhereverItIsCut) {
  const auto bytes = frame_bytes("with two", 2);
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    const Pair pair;
    FrameReader reader(kLimit);
    std::vector<Frame> frames;
    const Descriptor first = numbered_memory(1);
    const Descriptor second = numbered_memory(2);
    raw_send(pair.theirs.get(), frame_bytes("before"));
    raw_send(pair.theirs.get(), {bytes.data(), cut}, {first.get(), second.get()});
    ASSERT_FALSE(read_all(reader, pair.ours.get(), frames)) << "cut at " << cut;
    raw_send(pair.theirs.get(), {bytes.data() + cut, bytes.size() - cut});
    raw_send(pair.theirs.get(), frame_bytes("behind"));
    ASSERT_FALSE(read_all(reader, pair.ours.get(), frames)) << "cut at " << cut;
    ASSERT_EQ(frames.size(), 3U);
    EXPECT_TRUE(frames[0].descriptors.empty());
    ASSERT_EQ(frames[1].descriptors.size(), 2U);
    EXPECT_EQ(number_of(frames[1].descriptors[0]), 1U);
    EXPECT_EQ(number_of(frames[1].descriptors[1]), 2U);
    EXPECT_NE(::fcntl(frames[1].descriptors[0].get(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_TRUE(frames[2].descriptors.empty());
  }
}

struct Fatal {
  const char* name;
  std::vector<uint8_t> bytes;
  int descriptors;
  const char* code;
};

class FatalFrames : public testing::TestWithParam<Fatal> {};

TEST_P(FatalFrames, EndTheConnectionAndLeakNothing) {
  const size_t before = open_descriptors();
  {
    const Pair pair;
    FrameReader reader(kLimit);
    std::vector<Frame> frames;
    std::vector<Descriptor> memory;
    std::vector<int> fds;
    for (int i = 0; i < GetParam().descriptors; ++i) {
      memory.push_back(numbered_memory(1));
      fds.push_back(memory.back().get());
    }
    raw_send(pair.theirs.get(), GetParam().bytes, fds);
    const auto error = read_all(reader, pair.ours.get(), frames);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->code, GetParam().code);
    EXPECT_TRUE(frames.empty());
    EXPECT_FALSE(error->found.empty());
  }
  EXPECT_EQ(open_descriptors(), before);
}

std::vector<uint8_t> header_of(uint32_t length, uint8_t version, uint8_t descriptors, uint8_t high = 0) {
  std::vector<uint8_t> bytes(kFrameHeaderBytes);
  for (int i = 0; i < 4; ++i)
    bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(length >> (8 * i));
  bytes[4] = version;
  bytes[5] = descriptors;
  bytes[7] = high;
  return bytes;
}

INSTANTIATE_TEST_SUITE_P(
    All, FatalFrames,
    testing::Values(Fatal{"Garbage", std::vector<uint8_t>(100, 0xA5), 0, "FRAME_HEADER"},
                    Fatal{"AnotherVersion", header_of(0, kFrameVersion + 1, 0), 0, "FRAME_HEADER"},
                    Fatal{"ReservedBytes", header_of(0, kFrameVersion, 0, 1), 0, "FRAME_HEADER"},
                    Fatal{"MoreDescriptorsThanExist", header_of(0, kFrameVersion, 254), 0, "FRAME_HEADER"},
                    Fatal{"TooLarge", header_of(kLimit + 1, kFrameVersion, 0), 0, "FRAME_TOO_LARGE"},
                    Fatal{"FewerDescriptors", frame_bytes("x", 2), 1, "FRAME_DESCRIPTORS"},
                    Fatal{"FewerDescriptorsSeenEarly", header_of(10, kFrameVersion, 2), 1, "FRAME_DESCRIPTORS"},
                    Fatal{"MoreDescriptors", frame_bytes("x", 1), 3, "FRAME_DESCRIPTORS"},
                    Fatal{"DescriptorsOfNobody", frame_bytes("x"), 1, "FRAME_DESCRIPTORS"}),
    [](const auto& each) { return each.param.name; });

TEST(Frames, FramesBeforeABadOneAreTaken) {
  const Pair pair;
  FrameReader reader(kLimit);
  std::vector<Frame> frames;
  const Descriptor memory = numbered_memory(1);
  raw_send(pair.theirs.get(), frame_bytes("good"));
  raw_send(pair.theirs.get(), frame_bytes("bad"), {memory.get()});
  EXPECT_TRUE(read_all(reader, pair.ours.get(), frames));
  ASSERT_EQ(frames.size(), 1U);
  EXPECT_EQ(text_of(frames[0]), "good");
}

TEST(Frames, ClearLetsGoOfDescriptors) {
  const size_t before = open_descriptors();
  const Pair pair;
  FrameReader reader(kLimit);
  std::vector<Frame> frames;
  {
    const Descriptor memory = numbered_memory(1);
    const auto whole = frame_bytes("whole", 1);
    raw_send(pair.theirs.get(), {whole.data(), whole.size() - 1}, {memory.get()});
  }
  EXPECT_FALSE(read_all(reader, pair.ours.get(), frames));
  EXPECT_EQ(open_descriptors(), before + 3);
  reader.clear();
  EXPECT_EQ(open_descriptors(), before + 2);
}

TEST(Frames, ALargestFrameIsTaken) {
  const Pair pair;
  FrameReader reader(8);
  std::vector<Frame> frames;
  raw_send(pair.theirs.get(), frame_bytes("12345678"));
  EXPECT_FALSE(read_all(reader, pair.ours.get(), frames));
  ASSERT_EQ(frames.size(), 1U);
}

TEST(Frames, DescriptorsOverTheProcessLimitAreTruncatedAndNoticed) {
  const Pair pair;
  FrameReader reader(kLimit);
  std::vector<Frame> frames;
  const Descriptor memory = numbered_memory(1);
  raw_send(pair.theirs.get(), frame_bytes("x", 4), std::vector<int>(4, memory.get()));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // Room for one more.
  const Descriptor next = Descriptor::duplicate(memory.get());
  const rlimit tight{.rlim_cur = static_cast<rlim_t>(next.get() + 2), .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  const auto error = read_all(reader, pair.ours.get(), frames);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, "FRAME_DESCRIPTORS_TRUNCATED");
  EXPECT_TRUE(frames.empty());
}

TEST(Frames, AnEndBetweenFramesIsInOrderAndInsideOneIsNot) {
  for (const bool inside : {false, true}) {
    for (const size_t bytes : {size_t{3}, size_t{10}}) {
      Pair pair;
      FrameReader reader(kLimit);
      const auto frame = frame_bytes("hello");
      raw_send(pair.theirs.get(), frame);
      if (inside) raw_send(pair.theirs.get(), {frame.data(), bytes});
      pair.theirs.reset();
      std::vector<Frame> frames;
      const auto error = read_all(reader, pair.ours.get(), frames);
      EXPECT_EQ(frames.size(), 1U);
      EXPECT_EQ(error.has_value(), inside);
      if (error) {
        EXPECT_EQ(error->code, "CONNECTION_LOST");
      }
    }
  }
}

}  // namespace
}  // namespace baton::test
