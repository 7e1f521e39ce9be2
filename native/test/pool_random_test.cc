// Random sequences of everything a pool can do, against a plain model of what every block holds. Seeded: a failure
// names its seed, and BATON_TEST_SEED repeats it. BATON_TEST_ROUNDS: how many seeds. Half of the resumes go on in a
// std::thread of the pool's while the model frees blocks.

#include <map>
#include <random>
#include <set>

#include "native/share/import.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

using pool::PauseReport;
using pool::PauseRequest;
using pool::Pool;
using pool::Range;
using pool::RangeSet;
using pool::ResumeReport;
using pool::Worth;

const auto* const environment = ::testing::AddGlobalTestEnvironment(new StandinEnvironment);

struct Block {
  uint64_t bytes;
  uint64_t seed;
  Worth worth = Worth::kSaved;
  bool undefined = false;  // its content is nobody's promise any more
};

uint64_t number_from(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed), pool_(make_pool(24 * kMiB, seed % 2 == 0 ? kSegment : 2 * kSegment)) {
    pool_->verify_frozen(UINT64_MAX);
  }

  void run(int steps) {
    for (int step = 0; step < steps && !::testing::Test::HasFailure(); ++step) {
      switch (random_() % 12) {
        case 0:
        case 1:
        case 2:
        case 3:
          allocate_one();
          break;
        case 4:
        case 5:
          free_one();
          break;
        case 6:
          write_one();
          break;
        case 7:
          declare();
          break;
        case 8:
          pause();
          break;
        case 9:
          resume();
          break;
        case 10:
          export_one();
          break;
        default:
          if (random_() % 4 == 0) {
            discard();
          } else {
            BATON_EXPECT_OK(pool_->trim());
          }
          break;
      }
      check_figures();
    }
    BATON_EXPECT_OK(pool_->resume({}, true));
    paused_.clear();
    check_contents();
  }

 private:
  uint64_t segment_bytes() const { return pool_->segment_bytes(); }
  uint64_t segment_of(uint64_t address) const { return (address - pool_->base()) / segment_bytes(); }

  bool is_mapped(uint64_t address, uint64_t bytes) const {
    for (uint64_t s = segment_of(address); s <= segment_of(address + bytes - 1); ++s) {
      if (paused_.contains(s)) return false;
    }
    return true;
  }

  std::map<uint64_t, Block>::iterator any_block() {
    auto it = blocks_.begin();
    std::advance(it, static_cast<long>(random_() % blocks_.size()));
    return it;
  }

  void allocate_one() {
    const uint64_t most = random_() % 5 == 0 ? 3 * kSegment : 200000;
    const uint64_t bytes = 1 + random_() % most;
    if (live_bytes_ + bytes > 20 * kMiB) return;
    const auto address = pool_->allocate(bytes, 64 << (random_() % 5));
    ASSERT_TRUE(address.ok()) << to_json(address.error());
    ASSERT_TRUE(is_mapped(*address, bytes)) << "a new block in a paused segment";
    const auto [it, added] = blocks_.emplace(*address, Block{bytes, next_seed_++});
    ASSERT_TRUE(added);
    live_bytes_ += bytes;
    fill(*address, bytes, it->second.seed);
  }

  void free_one() {
    if (blocks_.empty()) return;
    const auto it = any_block();
    BATON_EXPECT_OK(pool_->free(it->first));
    live_bytes_ -= it->second.bytes;
    blocks_.erase(it);
  }

  void write_one() {
    if (blocks_.empty()) return;
    const auto it = any_block();
    if (it->second.worth == Worth::kFrozen || !is_mapped(it->first, it->second.bytes)) return;
    it->second.seed = next_seed_++;
    it->second.undefined = false;
    fill(it->first, it->second.bytes, it->second.seed);
  }

  // Worth changes only for blocks that are mapped: what was not saved cannot be saved by saying so later.
  void declare() {
    std::map<Worth, std::vector<Range>> ranges;
    for (auto& [address, block] : blocks_) {
      if (is_mapped(address, block.bytes)) block.worth = static_cast<Worth>(random_() % 4);
      ranges[block.worth].push_back({address, address + block.bytes});
    }
    for (const Worth worth : {Worth::kFrozen, Worth::kZero, Worth::kDiscard}) {
      pool_->declare(worth, RangeSet(ranges[worth]));
    }
  }

  void pause() {
    PauseRequest request;
    std::vector<Range> keep;
    for (const auto& [address, block] : blocks_) {
      if (random_() % 8 == 0) keep.push_back({address, address + block.bytes});
    }
    request.keep = RangeSet(keep);
    if (random_() % 2 == 0) request.want_bytes = (random_() % 8) * segment_bytes();
    const auto before = pool_->stats();
    const auto report = pool_->pause(request);
    ASSERT_TRUE(report.ok()) << to_json(report.error());
    // As the report must say: segments that are gone now, and what of them was live and how.
    std::set<uint64_t> gone;
    uint64_t saved_or_clean = 0;
    for (const auto& [address, block] : blocks_) {
      for (uint64_t s = segment_of(address); s <= segment_of(address + block.bytes - 1); ++s) {
        if (paused_.contains(s) || is_readable(pool_->base() + s * segment_bytes())) continue;
        gone.insert(s);
        const Range segment{pool_->base() + s * segment_bytes(), pool_->base() + (s + 1) * segment_bytes()};
        const uint64_t part = std::min(address + block.bytes, segment.end) - std::max(address, segment.begin);
        if (block.worth == Worth::kSaved || block.worth == Worth::kFrozen) saved_or_clean += part;
        for (const Range& range : request.keep.ranges()) {
          ASSERT_FALSE(range.begin < segment.end && segment.begin < range.end) << "a kept segment was released";
        }
      }
    }
    EXPECT_EQ(report->saved_bytes + report->clean_bytes, saved_or_clean);
    EXPECT_EQ(report->released_bytes, (before.mapped_segments - pool_->stats().mapped_segments) * segment_bytes());
    EXPECT_EQ(report->dead_bytes, report->released_bytes - saved_or_clean);
    EXPECT_LE(report->released_bytes, request.want_bytes);
    EXPECT_EQ(report->kept_bytes, pool_->stats().mapped_segments * segment_bytes());
    for (auto& [address, block] : blocks_) {
      for (uint64_t s = segment_of(address); s <= segment_of(address + block.bytes - 1); ++s) {
        if (!gone.contains(s)) continue;
        if (block.worth == Worth::kDiscard) block.undefined = true;
        // Zeros only where the segment went: a block of both is no pattern any more.
        if (block.worth == Worth::kZero) block.undefined = true;
      }
    }
    paused_.insert(gone.begin(), gone.end());
  }

  void resume() {
    const bool background = random_() % 2 == 0;
    std::vector<Range> first;
    if (!blocks_.empty() && random_() % 2 == 0) first.push_back({any_block()->first, any_block()->first + 1});
    const auto report = pool_->resume(RangeSet(first), !background);
    ASSERT_TRUE(report.ok()) << to_json(report.error());
    if (background && random_() % 2 == 0) free_one();
    ResumeReport done;
    BATON_EXPECT_OK(pool_->wait(60000, done));
    EXPECT_EQ(done.pending_bytes, 0U);
    paused_.clear();
    check_contents();
  }

  void discard() {
    BATON_EXPECT_OK(pool_->discard());
    for (auto& [address, block] : blocks_) {
      block.undefined = true;
      for (uint64_t s = segment_of(address); s <= segment_of(address + block.bytes - 1); ++s)
        paused_.insert(s);
    }
    // Whoever discards declares anew: a frozen range that comes back undefined is no longer what it was.
    for (auto& [address, block] : blocks_)
      block.worth = Worth::kSaved;
    for (const Worth worth : {Worth::kFrozen, Worth::kZero, Worth::kDiscard})
      pool_->declare(worth, {});
  }

  // What another process would see of a segment.
  void export_one() {
    if (blocks_.empty()) return;
    const auto it = any_block();
    const uint64_t segment = segment_of(it->first);
    const auto fd = pool_->export_segment(segment);
    if (paused_.contains(segment)) {
      EXPECT_EQ(code_of(fd), "SEGMENT_NOT_MAPPED");
      return;
    }
    ASSERT_TRUE(fd.ok()) << to_json(fd.error());
    const auto import = share::Import::open(*take(Gpu::get(0)), segment_bytes(), {&segment, 1}, {&*fd, 1});
    close(*fd);
    ASSERT_TRUE(import.ok()) << to_json(import.error());
    const uint64_t end = pool_->base() + (segment + 1) * segment_bytes();
    const uint64_t bytes = std::min(it->second.bytes, end - it->first);
    if (it->second.undefined) return;
    EXPECT_EQ(read_bytes((*import)->base() + (it->first - pool_->base()), bytes), read_bytes(it->first, bytes));
  }

  void check_figures() {
    const auto stats = pool_->stats();
    EXPECT_EQ(stats.live_blocks, blocks_.size());
    EXPECT_EQ(stats.live_bytes, live_bytes_);
    const auto blocks = pool_->blocks();
    ASSERT_EQ(blocks.size(), blocks_.size());
    size_t i = 0;
    for (const auto& [address, block] : blocks_) {
      EXPECT_EQ(blocks[i].begin, address);
      EXPECT_EQ(blocks[i++].bytes(), block.bytes);
    }
  }

  void check_contents() {
    for (const auto& [address, block] : blocks_) {
      if (block.undefined) continue;
      ASSERT_TRUE(holds(address, block.bytes, block.seed)) << "block of " << block.bytes << " bytes";
    }
  }

  std::mt19937_64 random_;
  std::unique_ptr<Pool> pool_;
  std::map<uint64_t, Block> blocks_;
  std::set<uint64_t> paused_;
  uint64_t live_bytes_ = 0;
  uint64_t next_seed_ = 1;
};

TEST(RandomSequences, AgreeWithAPlainModel) {
  const uint64_t one = number_from("BATON_TEST_SEED", 0);
  const uint64_t rounds = number_from("BATON_TEST_ROUNDS", 12);
  const uint64_t first = one != 0 ? one : 1;
  const uint64_t last = one != 0 ? one : rounds;
  const uint64_t free_before = free_device_bytes();
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE("BATON_TEST_SEED=" + std::to_string(seed));
    Model(seed).run(150);
    ASSERT_FALSE(::testing::Test::HasFailure());
  }
  // All pools are gone, and so is all of their memory, but for the scratch buffer of checksums.
  EXPECT_GE(free_device_bytes() + kSegment, free_before);
}

}  // namespace
}  // namespace baton::test
