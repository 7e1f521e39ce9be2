// Ranges and the block allocator against plain models: one entry a byte, and one a block.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "native/pool/blocks.h"
#include "native/pool/free_ranges.h"
#include "native/pool/ranges.h"

namespace baton::pool {
namespace {

using Bits = std::vector<bool>;

Bits bits_of(const RangeSet& set, uint64_t size) {
  Bits bits(size, false);
  for (const Range& range : set.ranges()) {
    for (uint64_t i = range.begin; i < range.end; ++i)
      bits[i] = true;
  }
  return bits;
}

RangeSet random_set(std::mt19937_64& random, uint64_t size) {
  std::vector<Range> ranges;
  for (uint64_t n = random() % 6; n > 0; --n) {
    const uint64_t begin = random() % size;
    ranges.push_back({begin, std::min(size, begin + random() % 12)});
  }
  return RangeSet(ranges);
}

TEST(RangeSet, OperationsAgreeWithSetsOfBytes) {
  std::mt19937_64 random(1);
  constexpr uint64_t kSize = 64;
  for (int round = 0; round < 20000; ++round) {
    const RangeSet a = random_set(random, kSize);
    const RangeSet b = random_set(random, kSize);
    const Bits in_a = bits_of(a, kSize);
    const Bits in_b = bits_of(b, kSize);
    const Range window{random() % kSize, kSize - random() % 20};
    Bits both(kSize), only_a(kSize), either(kSize), inside(kSize);
    bool meets = false;
    uint64_t count = 0;
    for (uint64_t i = 0; i < kSize; ++i) {
      both[i] = in_a[i] && in_b[i];
      only_a[i] = in_a[i] && !in_b[i];
      either[i] = in_a[i] || in_b[i];
      inside[i] = in_a[i] && i >= window.begin && i < window.end;
      meets = meets || inside[i];
      count += in_a[i] ? 1 : 0;
    }
    ASSERT_EQ(bits_of(a.intersected(b), kSize), both);
    ASSERT_EQ(bits_of(a.subtracted(b), kSize), only_a);
    ASSERT_EQ(bits_of(a.united(b), kSize), either);
    ASSERT_EQ(bits_of(a.clipped(window), kSize), inside);
    ASSERT_EQ(a.intersects(window), meets);
    ASSERT_EQ(a.bytes(), count);
    for (size_t i = 1; i < a.ranges().size(); ++i)
      ASSERT_LT(a.ranges()[i - 1].end, a.ranges()[i].begin);
  }
}

TEST(FreeRanges, TakesTheSmallestThatFits) {
  FreeRanges free;
  free.insert({0, 4096});
  free.insert({8192, 8192 + 1024});
  free.insert({16384, 16384 + 2048});
  EXPECT_EQ(free.take(1024, 512), 8192U);
  EXPECT_EQ(free.take(1536, 512), 16384U);
  EXPECT_EQ(free.take(4096, 4096), 0U);
  EXPECT_EQ(free.bytes(), 512U);
  EXPECT_EQ(free.take(1024, 512), std::nullopt);
}

TEST(FreeRanges, LargeAlignmentFindsTheOneThatFits) {
  FreeRanges free;
  free.insert({512, 4096});                // nothing of 2048 aligned to 4096 inside
  free.insert({8192 + 512, 8192 + 6656});  // 12288 is, and so is its end
  EXPECT_EQ(free.take(2048, 4096), 12288U);
}

TEST(FreeRanges, NeighboursBecomeOne) {
  FreeRanges free;
  free.insert({0, 512});
  free.insert({1024, 1536});
  free.insert({512, 1024});
  EXPECT_EQ(free.all(), (std::vector<Range>{{0, 1536}}));
  free.remove({512, 600});
  EXPECT_EQ(free.all(), (std::vector<Range>{{0, 512}, {600, 1536}}));
}

constexpr uint64_t kBase = 1 << 20;
constexpr uint64_t kSegmentBytes = 4096;
constexpr uint64_t kSegments = 24;

uint64_t space(uint64_t bytes) {
  return (bytes + BlockAllocator::kQuantumBytes - 1) / BlockAllocator::kQuantumBytes * BlockAllocator::kQuantumBytes;
}

// Blocks do not overlap, lie in usable segments when handed out, and whatever is free can be found.
TEST(BlockAllocator, AgreesWithAPlainModel) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::mt19937_64 random(seed);
    BlockAllocator allocator(kBase, kSegmentBytes, kSegments);
    std::map<uint64_t, uint64_t> blocks;
    std::vector<BlockAllocator::Place> places(kSegments, BlockAllocator::Place::kAbsent);
    const auto is_taken = [&](uint64_t from, uint64_t to) {
      for (const auto& [address, bytes] : blocks) {
        if (address < to && address + space(bytes) > from) return true;
      }
      return false;
    };
    const auto usable = [&](uint64_t from, uint64_t to) {
      for (uint64_t i = (from - kBase) / kSegmentBytes; i <= (to - 1 - kBase) / kSegmentBytes; ++i) {
        if (i >= kSegments || places[i] != BlockAllocator::Place::kUsable) return false;
      }
      return true;
    };
    const auto room_for = [&](uint64_t bytes, uint64_t alignment) {
      for (uint64_t at = kBase; at + space(bytes) <= kBase + kSegments * kSegmentBytes; at += 512) {
        if (at % alignment == 0 && usable(at, at + space(bytes)) && !is_taken(at, at + space(bytes))) return true;
      }
      return false;
    };
    for (int step = 0; step < 400; ++step) {
      const uint64_t choice = random() % 10;
      if (choice < 5) {
        const uint64_t bytes = 1 + random() % (random() % 4 == 0 ? 9000 : 1500);
        const uint64_t alignment = 64 << (random() % 6);
        const bool expected = room_for(bytes, std::max<uint64_t>(alignment, 512));
        auto address = allocator.allocate(bytes, alignment);
        ASSERT_EQ(address.has_value(), expected) << "seed " << seed << " step " << step;
        if (!address) {
          const auto growth = allocator.plan_growth(bytes, alignment);
          if (!growth) continue;
          for (uint64_t i = 0; i < growth->segments; ++i) {
            const uint64_t segment = growth->first_segment + i;
            ASSERT_EQ(places[segment], BlockAllocator::Place::kAbsent);
            places[segment] = BlockAllocator::Place::kUsable;
            allocator.set_place(segment, places[segment]);
          }
          address = allocator.allocate(bytes, alignment);
          ASSERT_TRUE(address.has_value()) << "growth was not enough; seed " << seed << " step " << step;
        }
        ASSERT_EQ(*address % std::max<uint64_t>(alignment, 512), 0U);
        ASSERT_TRUE(usable(*address, *address + space(bytes)));
        ASSERT_FALSE(is_taken(*address, *address + space(bytes)));
        blocks[*address] = bytes;
      } else if (choice < 8 && !blocks.empty()) {
        auto it = blocks.begin();
        std::advance(it, static_cast<long>(random() % blocks.size()));
        const auto freed = allocator.free(it->first);
        ASSERT_EQ(freed, (Range{it->first, it->first + it->second}));
        ASSERT_FALSE(allocator.free(it->first).has_value());
        blocks.erase(it);
      } else {
        const uint64_t segment = random() % kSegments;
        const Range range = allocator.segment_range(segment);
        const bool held = is_taken(range.begin, range.end);
        ASSERT_EQ(allocator.holds_block(segment), held);
        if (places[segment] == BlockAllocator::Place::kAbsent) continue;
        // As a pool does: away when paused, absent only without blocks, usable again when resumed.
        places[segment] = places[segment] == BlockAllocator::Place::kUsable
                              ? (held ? BlockAllocator::Place::kAway : BlockAllocator::Place::kAbsent)
                              : BlockAllocator::Place::kUsable;
        allocator.set_place(segment, places[segment]);
      }
      uint64_t live = 0;
      for (const auto& [address, bytes] : blocks)
        live += bytes;
      ASSERT_EQ(allocator.live_bytes(), live);
      ASSERT_EQ(allocator.live_blocks(), blocks.size());
    }
  }
}

}  // namespace
}  // namespace baton::pool
