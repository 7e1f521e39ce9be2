// Copy plans against memcpy.
#include "native/copy/copy_plan.h"

#include <numeric>
#include <random>

#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using copy::CopyPiece;
using copy::CopyPlan;
using copy::CopyReport;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

TEST(CopyPieces, CoverEachRunOnceAndBeginAligned) {
  const std::vector<copy::Run> runs = {{1, 100, 1000003, 50000}, {0, 0, 64, 16384}, {2, 7, 50000, 1}, {2, 7, 0, 0}};
  const std::vector<CopyPiece> pieces = take(copy::pieces_of(runs));
  uint64_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_LE(pieces[i].bytes, copy::kCopyPieceBytes);
    bytes += pieces[i].bytes;
    if (i == 0 || pieces[i - 1].dst + pieces[i - 1].bytes != pieces[i].dst) continue;
    EXPECT_EQ(pieces[i].dst % 16, 0U);
    EXPECT_EQ(pieces[i - 1].src_offset + pieces[i - 1].bytes, pieces[i].src_offset);
  }
  EXPECT_EQ(bytes, 50000U + 16384U + 1U);
  EXPECT_EQ(pieces.front().dst, 64U);  // in the order of destinations
}

TEST(CopyPieces, NeighboursAreJoined) {
  const std::vector<copy::Run> rows = {{0, 300, 300, 100}, {0, 100, 100, 100}, {0, 200, 200, 100}, {0, 100, 100, 100}};
  EXPECT_EQ(take(copy::pieces_of(rows)).size(), 1U);
  const std::vector<copy::Run> others = {{0, 100, 100, 100}, {1, 200, 200, 100}, {0, 350, 300, 100}};
  EXPECT_EQ(take(copy::pieces_of(others)).size(), 3U);
}

TEST(CopyPieces, RunsThatWriteTheSameBytesAreAnError) {
  const std::vector<copy::Run> runs = {{0, 0, 0, 100}, {0, 500, 99, 10}};
  EXPECT_EQ(code_of(copy::pieces_of(runs)), "COPY_RUNS_OVERLAP");
}

// Three sources and a destination in pools; runs of any alignment and length that do not overlap.
TEST(CopyPlan, RandomRunsAgreeWithMemcpy) {
  const Gpu& gpu = *take(Gpu::get(0));
  auto pool = make_pool(0);
  constexpr uint64_t kBytes = 2 * kMiB;
  std::vector<uint64_t> sources;
  std::vector<std::vector<uint8_t>> contents;
  for (uint64_t slot = 0; slot < 3; ++slot) {
    sources.push_back(allocate(*pool, kBytes));
    contents.push_back(pattern(slot, kBytes));
    write_bytes(sources.back(), contents.back());
  }
  const uint64_t destination = allocate(*pool, kBytes);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<uint8_t> expected = pattern(1000 + seed, kBytes);
    write_bytes(destination, expected);
    std::vector<copy::Run> runs;
    uint64_t at = random() % 100;
    uint64_t bytes = 0;
    while (true) {
      const uint64_t most = random() % 5 == 0 ? 100000 : random() % 3 == 0 ? 40 : 3000;
      const uint64_t count = 1 + random() % most;
      if (at + count > kBytes) break;
      const auto slot = static_cast<uint32_t>(random() % 3);
      uint64_t from = random() % (kBytes - count);
      if (random() % 3 == 0) from = from / 16 * 16 + at % 16;  // agree in their low bits
      if (from + count > kBytes) from = 0;
      runs.push_back({slot, from, destination + at, count});
      std::memcpy(expected.data() + at, contents[slot].data() + from, count);
      bytes += count;
      at += count + (random() % 2 == 0 ? 0 : random() % 50);
    }
    std::shuffle(runs.begin(), runs.end(), random);
    auto plan = take(CopyPlan::create(gpu, runs));
    const CopyReport report = take(plan->execute(sources));
    EXPECT_EQ(report.bytes, bytes);
    EXPECT_EQ(report.runs, runs.size());
    ASSERT_TRUE(read_bytes(destination, kBytes) == expected) << "seed " << seed;
  }
}

// float32 becomes bfloat16 beside bytes that stay as they are; rows that go on are joined, and cut at any place.
TEST(CopyPlan, RoundsWholeElementsAndLeavesTheRest) {
  const Gpu& gpu = *take(Gpu::get(0));
  auto pool = make_pool(0);
  constexpr uint64_t kElements = 100001;
  std::vector<uint8_t> source = pattern(3, kElements * 4);
  const uint64_t from = allocate(*pool, source.size());
  write_bytes(from, source);
  const uint64_t to = allocate(*pool, kElements * 2 + 64);
  fill(to, kElements * 2 + 64, 9);
  std::vector<copy::Run> runs;
  for (uint64_t at = 0; at < kElements; at += 333) {
    const uint64_t elements = std::min<uint64_t>(333, kElements - at);
    runs.push_back({0, at * 4, to + at * 2, elements * 2, copy::Conversion::kRounded});
  }
  runs.push_back({0, 7, to + kElements * 2, 64});
  EXPECT_EQ(take(copy::pieces_of(runs)).size(),
            (kElements * 2 + copy::kCopyPieceBytes - 1) / copy::kCopyPieceBytes + 1);
  const uint64_t bases[] = {from};
  EXPECT_EQ(take(take(CopyPlan::create(gpu, runs))->execute(bases)).bytes, kElements * 2 + 64);
  std::vector<uint8_t> wanted;
  for (uint64_t k = 0; k < kElements; ++k) {
    uint32_t bits = 0;
    std::memcpy(&bits, source.data() + k * 4, 4);
    const uint16_t rounded = copy::bfloat16_bits(bits);
    wanted.push_back(static_cast<uint8_t>(rounded));
    wanted.push_back(static_cast<uint8_t>(rounded >> 8));
  }
  wanted.insert(wanted.end(), source.begin() + 7, source.begin() + 7 + 64);
  EXPECT_TRUE(read_bytes(to, wanted.size()) == wanted);
}

TEST(CopyPlan, RoundsNoPartsOfElements) {
  for (const copy::Run& run :
       {copy::Run{0, 2, 0, 4, copy::Conversion::kRounded}, copy::Run{0, 4, 1, 4, copy::Conversion::kRounded},
        copy::Run{0, 4, 2, 3, copy::Conversion::kRounded}, copy::Run{0, 4, 2, 4, static_cast<copy::Conversion>(2)}}) {
    EXPECT_EQ(code_of(copy::pieces_of({&run, 1})), "INVALID_ARGUMENT");
  }
}

TEST(CopyPlan, CanBeExecutedAgainWithOtherBases) {
  const Gpu& gpu = *take(Gpu::get(0));
  auto pool = make_pool(0);
  const uint64_t a = allocate(*pool, 70000);
  const uint64_t b = allocate(*pool, 70000);
  const uint64_t to = allocate(*pool, 70000);
  fill(a, 70000, 1);
  fill(b, 70000, 2);
  const copy::Run run{1, 0, to, 70000};
  auto plan = take(CopyPlan::create(gpu, {&run, 1}));
  const uint64_t bases_a[] = {0, a};
  const uint64_t bases_b[] = {0, b};
  for (int round = 0; round < 3; ++round) {
    BATON_EXPECT_OK(plan->execute(bases_a));
    EXPECT_TRUE(holds(to, 70000, 1));
    BATON_EXPECT_OK(plan->execute(bases_b));
    EXPECT_TRUE(holds(to, 70000, 2));
  }
  EXPECT_EQ(code_of(plan->execute({bases_a, 1})), "INVALID_ARGUMENT");
}

TEST(CopyPlan, OfNothingDoesNothing) {
  auto plan = take(CopyPlan::create(*take(Gpu::get(0)), {}));
  EXPECT_EQ(take(plan->execute({})).bytes, 0U);
}

}  // namespace
}  // namespace baton::test
