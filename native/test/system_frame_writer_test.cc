// Frames as they are sent through real sockets: in order, whole, with their descriptors, however slow the reader.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "native/system/frame_reader.h"
#include "native/system/frame_writer.h"
#include "native/test/frames_support.h"

namespace baton::test {
namespace {

// One piece, copied where it has to wait.
Status send(FrameWriter& writer, int socket, std::span<const uint8_t> payload, std::span<const int> descriptors) {
  const FramePiece whole{.bytes = payload, .owner = nullptr};
  return writer.send(socket, std::span(&whole, 1), descriptors);
}

// The same bytes cut into one to four pieces, of which some are borrowed.
std::vector<FramePiece> cut(const std::shared_ptr<const std::string>& payload, std::mt19937& random) {
  std::vector<FramePiece> pieces;
  std::span<const uint8_t> left(reinterpret_cast<const uint8_t*>(payload->data()), payload->size());
  for (int i = 0; i < 3; ++i) {
    const size_t size = random() % 2 == 0 ? random() % (left.size() + 1) : 0;
    pieces.push_back({.bytes = left.first(size), .owner = nullptr});
    left = left.subspan(size);
  }
  pieces.push_back({.bytes = left, .owner = nullptr});
  for (FramePiece& piece : pieces) {
    if (random() % 2 == 0) piece.owner = payload;
  }
  return pieces;
}

// Generated traffic, the writer with a tiny socket buffer so that most frames are queued and cut.
TEST(Frames, KeepOrderAndDescriptorsUnderBackPressure) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    const size_t before = open_descriptors();
    {
      Pair pair;
      const int tiny = 1;
      ASSERT_EQ(::setsockopt(pair.theirs.get(), SOL_SOCKET, SO_SNDBUF, &tiny, sizeof(tiny)), 0);
      FrameReader reader(kLimit);
      FrameWriter writer(uint64_t{1} << 30);
      std::vector<std::string> sent;
      std::vector<std::weak_ptr<std::string>> borrowed;
      std::vector<std::vector<uint64_t>> sent_numbers;
      std::vector<Frame> frames;
      uint64_t next_number = 1;
      for (int i = 0; i < 60; ++i) {
        const size_t size = random() % 4 == 0 ? random() % 200'000 : random() % 300;
        auto payload = std::make_shared<std::string>(size, '\0');
        for (char& letter : *payload)
          letter = static_cast<char>(random());
        std::vector<Descriptor> memory;
        std::vector<int> fds;
        std::vector<uint64_t> numbers;
        for (uint32_t n = random() % 3 == 0 ? random() % 4 : 0; n > 0; --n) {
          numbers.push_back(next_number);
          memory.push_back(numbered_memory(next_number++));
          fds.push_back(memory.back().get());
        }
        sent.push_back(*payload);
        {
          const std::vector<FramePiece> pieces = cut(payload, random);
          ASSERT_TRUE(writer.send(pair.theirs.get(), pieces, fds));
        }
        borrowed.push_back(payload);
        // Whoever lends nothing gets it back at once.
        if (payload.use_count() == 1) std::fill(payload->begin(), payload->end(), 'x');
        sent_numbers.push_back(std::move(numbers));
        if (random() % 3 == 0) {
          writer.flush(pair.theirs.get());
          ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
        }
      }
      for (int turns = 0; !writer.empty(); ++turns) {
        ASSERT_LT(turns, 1'000'000);
        writer.flush(pair.theirs.get());
        ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
      }
      EXPECT_EQ(writer.queued_bytes(), 0U);
      for (const auto& payload : borrowed)
        EXPECT_TRUE(payload.expired());
      ASSERT_EQ(frames.size(), sent.size()) << "seed " << seed;
      for (size_t i = 0; i < sent.size(); ++i) {
        ASSERT_EQ(text_of(frames[i]), sent[i]) << "frame " << i << ", seed " << seed;
        ASSERT_EQ(frames[i].descriptors.size(), sent_numbers[i].size());
        for (size_t n = 0; n < sent_numbers[i].size(); ++n) {
          EXPECT_EQ(number_of(frames[i].descriptors[n]), sent_numbers[i][n]);
        }
      }
    }
    EXPECT_EQ(open_descriptors(), before);
  }
}

TEST(Frames, AFullQueueRefusesAWholeFrameAndKeepsTheRest) {
  const Pair pair;
  const int tiny = 1;
  ASSERT_EQ(::setsockopt(pair.theirs.get(), SOL_SOCKET, SO_SNDBUF, &tiny, sizeof(tiny)), 0);
  FrameWriter writer(10'000);
  const std::vector<uint8_t> payload(4'000, 7);
  int accepted = 0;
  std::optional<Error> refused;
  while (!refused && accepted < 1000) {
    const auto status = send(writer, pair.theirs.get(), payload, {});
    if (status) {
      ++accepted;
    } else {
      refused = status.error();
    }
  }
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, "CHANNEL_FULL");
  EXPECT_LE(writer.queued_bytes(), 10'000U);
  FrameReader reader(kLimit);
  std::vector<Frame> frames;
  while (!writer.empty()) {
    ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
    writer.flush(pair.theirs.get());
  }
  ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
  EXPECT_EQ(frames.size(), static_cast<size_t>(accepted));
}

TEST(Frames, WrongDescriptorsAreRefusedBeforeAnythingIsSent) {
  const Pair pair;
  FrameWriter writer(kLimit);
  const std::vector<uint8_t> payload(10, 7);
  const auto closed = send(writer, pair.theirs.get(), payload, std::vector<int>{1 << 20});
  ASSERT_FALSE(closed);
  EXPECT_EQ(closed.error().code, "FRAME_DESCRIPTORS");
  const auto many = send(writer, pair.theirs.get(), payload, std::vector<int>(kFrameMaxDescriptors + 1, 0));
  ASSERT_FALSE(many);
  EXPECT_EQ(many.error().code, "FRAME_DESCRIPTORS");
  ASSERT_TRUE(send(writer, pair.theirs.get(), payload, std::vector<int>(kFrameMaxDescriptors, pair.ours.get())));
  FrameReader reader(kLimit);
  std::vector<Frame> frames;
  ASSERT_FALSE(read_all(reader, pair.ours.get(), frames));
  ASSERT_EQ(frames.size(), 1U);
  EXPECT_EQ(frames[0].descriptors.size(), kFrameMaxDescriptors);
}

TEST(Frames, TooManyPiecesAreRefusedBeforeAnythingIsSent) {
  const Pair pair;
  FrameWriter writer(kLimit);
  const auto many = writer.send(pair.theirs.get(), std::vector<FramePiece>(kFrameMaxPieces + 1), {});
  ASSERT_FALSE(many);
  EXPECT_EQ(many.error().code, "FRAME_PIECES");
  EXPECT_TRUE(writer.send(pair.theirs.get(), std::vector<FramePiece>(kFrameMaxPieces), {}));
}

TEST(Frames, WhatAClearedQueueBorrowedIsLetGo) {
  const Pair pair;
  FrameWriter writer(uint64_t{1} << 30);
  const auto bytes = std::make_shared<std::vector<uint8_t>>(8 << 20);
  ASSERT_TRUE(writer.send(pair.theirs.get(), std::vector{FramePiece{.bytes = *bytes, .owner = bytes}}, {}));
  EXPECT_EQ(bytes.use_count(), 2);
  writer.clear();
  EXPECT_EQ(bytes.use_count(), 1);
}

TEST(Frames, AGonePeerIsAFailureNotASignal) {
  Pair pair;
  pair.ours.reset();
  FrameWriter writer(kLimit);
  EXPECT_TRUE(send(writer, pair.theirs.get(), std::vector<uint8_t>(10), {}));
  EXPECT_EQ(writer.failure(), EPIPE);
  EXPECT_TRUE(writer.empty());
}

}  // namespace
}  // namespace baton::test
