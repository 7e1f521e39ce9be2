// Frozen contents that several pools have alike: saved once, in a file that all of them map.
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseReport;
using pool::Pool;
using pool::RangeSet;
using pool::ResumeReport;
using pool::SharedPiece;
using pool::Worth;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

constexpr uint64_t kBytes = 3 * kMiB + 13;          // over a segment's end, and no multiple of a word
constexpr uint64_t kPadded = 3 * kMiB + 512;        // what the block takes
constexpr uint64_t kFileBytes = 2 * kPadded + 704;  // another order than in memory, and a gap

class Shared : public ::testing::Test {
 protected:
  // A pool with two frozen blocks of the same contents as the other's, at other addresses.
  struct Replica {
    std::unique_ptr<Pool> pool;
    uint64_t first = 0;
    uint64_t second = 0;

    std::vector<SharedPiece> pieces() const {
      return {{{first, first + kPadded}, kPadded + 704}, {{second, second + kPadded}, 0}};
    }
  };

  static Replica make(uint64_t before) {
    Replica replica{make_pool()};
    if (before > 0) allocate(*replica.pool, before);
    replica.first = allocate(*replica.pool, kPadded);
    replica.second = allocate(*replica.pool, kPadded);
    fill(replica.first, kBytes, 1);
    fill(replica.second, kBytes, 2);
    // Padding is nobody's, and not alike.
    fill(replica.first + kBytes, kPadded - kBytes, before);
    fill(replica.second + kBytes, kPadded - kBytes, before + 1);
    replica.pool->declare(Worth::kFrozen, RangeSet({{replica.first, replica.first + kPadded},
                                                    {replica.second, replica.second + kPadded}}));
    replica.pool->verify_frozen(UINT64_MAX);
    return replica;
  }

  void SetUp() override {
    fd = memfd_create("shared", MFD_CLOEXEC);
    writer = make(0);
    reader = make(kMiB);
    for (Replica* each : {&writer, &reader})
      BATON_EXPECT_OK(each->pool->open_shared(fd, kFileBytes));
    BATON_EXPECT_OK(writer.pool->write_shared(writer.pieces()));
    for (Replica* each : {&writer, &reader})
      BATON_EXPECT_OK(each->pool->adopt_shared(each->pieces()));
  }
  void TearDown() override { close(fd); }

  int fd = -1;
  Replica writer;
  Replica reader;
};

TEST_F(Shared, NothingOfItIsSavedByAnyPool) {
  for (Replica* each : {&writer, &reader}) {
    const uint64_t own = each == &reader ? kMiB : 0;
    for (int cycle = 0; cycle < 3; ++cycle) {
      const PauseReport paused = take(each->pool->pause({}));
      EXPECT_EQ(paused.saved_bytes, own);
      EXPECT_EQ(paused.clean_bytes, 2 * kPadded);
      EXPECT_EQ(paused.kept_bytes, 0U);
      const ResumeReport resumed = take(each->pool->resume({}, true));
      EXPECT_EQ(resumed.verified_bytes, 2 * kPadded);
      EXPECT_TRUE(holds(each->first, kBytes, 1));
      EXPECT_TRUE(holds(each->second, kBytes, 2));
    }
    EXPECT_LE(each->pool->stats().arena_used_bytes, own);
  }
}

TEST_F(Shared, TheFileOutlivesItsWriter) {
  BATON_EXPECT_OK(reader.pool->pause({}));
  writer.pool.reset();
  BATON_EXPECT_OK(reader.pool->resume({}, true));
  EXPECT_TRUE(holds(reader.first, kBytes, 1));
  EXPECT_TRUE(holds(reader.second, kBytes, 2));
}

TEST_F(Shared, AChangeOfTheFileIsFound) {
  BATON_EXPECT_OK(reader.pool->pause({}));
  uint8_t byte = 0;
  ASSERT_EQ(pread(fd, &byte, 1, 100), 1);
  byte ^= 4;
  ASSERT_EQ(pwrite(fd, &byte, 1, 100), 1);
  EXPECT_EQ(code_of(reader.pool->resume({}, true)), "FROZEN_CHANGED");
}

TEST_F(Shared, AChangeOfTheMemoryIsFound) {
  BATON_EXPECT_OK(reader.pool->pause({}));
  BATON_EXPECT_OK(reader.pool->resume({}, true));
  write_bytes(reader.second, {0xFF});
  EXPECT_EQ(code_of(reader.pool->pause({})), "FROZEN_CHANGED");
}

TEST_F(Shared, WhatIsFrozenNoMoreIsSavedAgain) {
  reader.pool->declare(Worth::kFrozen, RangeSet({{reader.first, reader.first + kPadded}}));
  fill(reader.second, kBytes, 7);
  const PauseReport paused = take(reader.pool->pause({}));
  EXPECT_EQ(paused.saved_bytes, kPadded + kMiB);
  EXPECT_EQ(paused.clean_bytes, kPadded);
  BATON_EXPECT_OK(reader.pool->resume({}, true));
  EXPECT_TRUE(holds(reader.second, kBytes, 7));
}

TEST_F(Shared, ANewBlockAtTheSamePlaceIsNotTakenForTheOldOne) {
  BATON_EXPECT_OK(reader.pool->free(reader.second));
  ASSERT_EQ(allocate(*reader.pool, kPadded), reader.second);
  fill(reader.second, kPadded, 9);
  reader.pool->declare(Worth::kFrozen,
                       RangeSet({{reader.first, reader.first + kPadded}, {reader.second, reader.second + kPadded}}));
  BATON_EXPECT_OK(reader.pool->pause({}));
  BATON_EXPECT_OK(reader.pool->resume({}, true));
  EXPECT_TRUE(holds(reader.second, kPadded, 9));
}

TEST_F(Shared, WhatDoesNotFitIsRefused) {
  const std::vector<SharedPiece> beyond{{{reader.first, reader.first + kPadded}, 64 * kMiB}};
  EXPECT_EQ(code_of(reader.pool->adopt_shared(beyond)), "INVALID_ARGUMENT");
  BATON_EXPECT_OK(reader.pool->pause({}));
  EXPECT_EQ(code_of(reader.pool->adopt_shared(reader.pieces())), "INVALID_ARGUMENT");
}

}  // namespace
}  // namespace baton::test
