// Checksums against the definition, and what makes them fit for pieces that several processes hold.
#include <numeric>
#include <random>

#include "native/copy/checksum.h"
#include "native/copy/checksum_items.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using copy::ChecksumItem;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

// The definition, written once more from the contract and not from the code.
uint64_t factor_of(uint64_t index) {
  uint64_t x = (index % (1ULL << 32) + (index >> 32) * 0x9E3779B9ULL) % (1ULL << 32);
  x = (x ^ (x >> 16)) * 0x7FEB352DULL % (1ULL << 32);
  x = (x ^ (x >> 15)) * 0x846CA68BULL % (1ULL << 32);
  return (1ULL << 32) + (x ^ (x >> 16));
}

uint64_t hash_of(uint64_t index, uint64_t value) {
  return (value % (1ULL << 32) + 1) * factor_of(index) + (value >> 32) * factor_of(UINT64_MAX - index);
}

uint64_t reference(const std::vector<uint8_t>& bytes, uint32_t element_bytes, uint64_t first, bool indices_only) {
  uint64_t sum = 0;
  for (uint64_t k = 0; k < bytes.size() / element_bytes; ++k) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < element_bytes && !indices_only; ++i) {
      value |= static_cast<uint64_t>(bytes[k * element_bytes + i]) << (8 * i);
    }
    sum += hash_of(first + k, value);
  }
  return sum;
}

std::vector<uint64_t> sums_of(const std::vector<ChecksumItem>& items, uint64_t groups, bool indices_only = false) {
  std::vector<uint64_t> sums(groups, 12345);  // whatever was in there is replaced
  BATON_EXPECT_OK(copy::checksum_items(*take(Gpu::get(0)), items, indices_only, sums));
  return sums;
}

TEST(Checksum, KnownValues) {
  // lowbias32 gives 0, 0x6CDB8E80 and so on; worked out elsewhere.
  EXPECT_EQ(copy::element_hash(0, 0), 0x100000000ULL);
  EXPECT_EQ(copy::element_hash(1, 0), 0x1688990c0ULL);
  EXPECT_EQ(copy::element_hash(1, 5), 0x873396480ULL);
  EXPECT_EQ(copy::element_hash(UINT64_C(1) << 32, 0), 0x101fce552ULL);
}

class ChecksumOfWidth : public ::testing::TestWithParam<uint32_t> {};

TEST_P(ChecksumOfWidth, AgreesWithTheDefinition) {
  const uint32_t width = GetParam();
  auto pool = make_pool(0);
  const uint64_t block = allocate(*pool, kMiB);
  const std::vector<uint8_t> bytes = pattern(7, kMiB);
  write_bytes(block, bytes);
  std::mt19937_64 random(width);
  for (int round = 0; round < 30; ++round) {
    const uint64_t offset = random() % 64;  // any alignment, also odd
    const uint64_t elements = round == 0 ? 0 : 1 + random() % (round % 4 == 0 ? 100000 : 500);
    const uint64_t first = random();
    const ChecksumItem item{block + offset, first, elements, width, 0};
    const std::vector<uint8_t> part(bytes.begin() + offset, bytes.begin() + offset + elements * width);
    EXPECT_EQ(sums_of({item}, 1)[0], reference(part, width, first, false));
    EXPECT_EQ(sums_of({item}, 1, true)[0], reference(part, width, first, true));
  }
}

TEST_P(ChecksumOfWidth, PiecesInAnyOrderSumToTheWhole) {
  const uint32_t width = GetParam();
  auto pool = make_pool(0);
  const uint64_t elements = 123457;
  const uint64_t block = allocate(*pool, elements * width);
  fill(block, elements * width, 3);
  const uint64_t whole = sums_of({{block, 0, elements, width, 0}}, 1)[0];
  std::mt19937_64 random(width);
  std::vector<ChecksumItem> pieces;
  for (uint64_t at = 0; at < elements;) {
    const uint64_t count = std::min<uint64_t>(elements - at, 1 + random() % 30000);
    pieces.push_back({block + at * width, at, count, width, 0});
    at += count;
  }
  std::shuffle(pieces.begin(), pieces.end(), random);
  EXPECT_EQ(sums_of(pieces, 1)[0], whole);
  uint64_t by_hand = 0;
  for (const ChecksumItem& piece : pieces)
    by_hand += sums_of({piece}, 1)[0];
  EXPECT_EQ(by_hand, whole);
}

TEST_P(ChecksumOfWidth, OneBitAndOnePlaceMakeADifference) {
  const uint32_t width = GetParam();
  auto pool = make_pool(0);
  const uint64_t block = allocate(*pool, 1000 * width);
  fill(block, 1000 * width, 3);
  const ChecksumItem item{block, 0, 1000, width, 0};
  const uint64_t before = sums_of({item}, 1)[0];
  const uint8_t byte = read_bytes(block + 517, 1)[0];
  write_bytes(block + 517, {static_cast<uint8_t>(byte ^ 4)});
  EXPECT_NE(sums_of({item}, 1)[0], before);
  write_bytes(block + 517, {byte});
  EXPECT_EQ(sums_of({item}, 1)[0], before);
  EXPECT_NE(sums_of({{block, 1, 1000, width, 0}}, 1)[0], before);
  // Two elements that change places.
  const auto first = read_bytes(block, width);
  const auto second = read_bytes(block + width, width);
  write_bytes(block, second);
  write_bytes(block + width, first);
  EXPECT_NE(sums_of({item}, 1)[0], before);
}

INSTANTIATE_TEST_SUITE_P(Widths, ChecksumOfWidth, ::testing::Values(1, 2, 4, 8));

// More pieces and groups than one launch takes.
TEST(Checksum, ManyGroups) {
  auto pool = make_pool(0);
  constexpr uint64_t kItems = 40000;
  const uint64_t block = allocate(*pool, kItems * 4);
  const std::vector<uint8_t> bytes = pattern(11, kItems * 4);
  write_bytes(block, bytes);
  std::vector<ChecksumItem> items;
  std::vector<uint64_t> expected(20000, 0);
  for (uint64_t i = 0; i < kItems; ++i) {
    const auto group = static_cast<uint32_t>((i * 7919) % expected.size());
    items.push_back({block + i * 4, i, 1, 4, group});
    expected[group] += reference({bytes.begin() + i * 4, bytes.begin() + i * 4 + 4}, 4, i, false);
  }
  EXPECT_EQ(sums_of(items, expected.size()), expected);
}

TEST(Checksum, WrongItemsAreErrors) {
  uint64_t sum = 0;
  const Gpu& gpu = *take(Gpu::get(0));
  const ChecksumItem width{0, 0, 1, 3, 0};
  const ChecksumItem group{0, 0, 1, 4, 1};
  const ChecksumItem rounded{0, 0, 1, 2, 0, copy::Conversion::kRounded};
  EXPECT_EQ(code_of(copy::checksum_items(gpu, {&rounded, 1}, false, {&sum, 1})), "INVALID_ARGUMENT");
  EXPECT_EQ(code_of(copy::checksum_items(gpu, {&width, 1}, false, {&sum, 1})), "INVALID_ARGUMENT");
  EXPECT_EQ(code_of(copy::checksum_items(gpu, {&group, 1}, false, {&sum, 1})), "INVALID_ARGUMENT");
}

}  // namespace
}  // namespace baton::test
