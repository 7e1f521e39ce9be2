// Pausable GPU memory: one reserved address range whose segments can be given back to the GPU and come back at the
// same addresses with the same bytes. The meaning of every operation is documented in native/capi/baton.h.
//
// Thread-safe. Allocating and freeing go on while a background resume is under way; they wait while a pause or
// the foreground part of a resume holds the pool.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "native/copy/gpu.h"
#include "native/driver/error.h"
#include "native/pool/arena.h"
#include "native/pool/blocks.h"
#include "native/pool/contents.h"
#include "native/pool/segment_memory.h"
#include "native/pool/shared_copies.h"

namespace baton::pool {

struct Options {
  int32_t device = 0;
  bool exportable = true;
  uint64_t segment_bytes = 0;  // 0: the allocation granularity
  uint64_t reserve_bytes = 0;  // 0: twice the device's memory
  std::string name;
};

struct Stats {
  uint64_t segments = 0;
  uint64_t mapped_segments = 0;
  uint64_t live_bytes = 0;
  uint64_t live_blocks = 0;
  uint64_t arena_bytes = 0;
  uint64_t arena_used_bytes = 0;
  uint64_t pending_bytes = 0;
};

struct PauseRequest {
  std::optional<RangeSet> live;  // nullopt: the pool's own blocks
  RangeSet keep;
  uint64_t want_bytes = UINT64_MAX;
};

struct PauseReport {
  uint64_t released_bytes = 0;
  uint64_t saved_bytes = 0;
  uint64_t clean_bytes = 0;
  uint64_t dead_bytes = 0;
  uint64_t kept_bytes = 0;
  uint64_t copy_ns = 0;
  uint64_t total_ns = 0;
  uint64_t simulated_ns = 0;
};

struct ResumeReport {
  uint64_t mapped_bytes = 0;
  uint64_t copied_bytes = 0;
  uint64_t pending_bytes = 0;
  uint64_t verified_bytes = 0;
  uint64_t copy_ns = 0;
  uint64_t total_ns = 0;
  uint64_t simulated_ns = 0;
};

class Pool {
 public:
  static Result<std::unique_ptr<Pool>> create(const Options& options);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  uint64_t base() const { return base_; }
  uint64_t reserve_bytes() const { return reserve_bytes_; }
  uint64_t segment_bytes() const { return memory_.segment_bytes(); }
  Stats stats() const;
  // Takes no lock: a freeing thread may ask for any address at any time.
  bool owns(uint64_t address) const noexcept { return address - base_ < reserve_bytes_; }

  // Errors: OUT_OF_MEMORY, OUT_OF_ADDRESS_SPACE, INVALID_ARGUMENT.
  Result<uint64_t> allocate(uint64_t bytes, uint64_t alignment);
  // Errors: NOT_A_BLOCK.
  Status free(uint64_t address);
  std::vector<Range> blocks() const;
  // Bytes released.
  Result<uint64_t> trim();

  void declare(Worth worth, RangeSet ranges);
  void verify_frozen(uint64_t first_resumes);
  // Errors: ARENA_UNUSABLE, ARENA_IN_USE.
  Status set_arena(int fd, uint64_t offset, uint64_t bytes);
  Status open_arena(int fd, uint64_t offset, uint64_t capacity_bytes);
  // Goes on beside everything else. Errors: NO_ARENA, ARENA_UNUSABLE.
  Status grow_arena(uint64_t bytes);
  // share.cc: frozen contents that are alike in several processes, in a file that all of them map. One writes, all
  // adopt: what is adopted has the file's bytes afterwards, and a pause finds it saved already.
  Status open_shared(int fd, uint64_t bytes);
  Status write_shared(const std::vector<SharedPiece>& pieces);
  Status adopt_shared(const std::vector<SharedPiece>& pieces);

  // Errors: NO_ARENA, ARENA_TOO_SMALL, FROZEN_CHANGED, ROLLBACK_INCOMPLETE, driver errors.
  Result<PauseReport> pause(const PauseRequest& request);
  Result<PauseReport> discard();
  // Errors: OUT_OF_MEMORY, FROZEN_CHANGED, driver errors. The pool stays paused then.
  Result<ResumeReport> resume(const RangeSet& first, bool wait, const RangeSet& leave = {});
  // `report` is filled in either case. Errors: DEADLINE, and what ended the background resume.
  Status wait(uint64_t deadline_ms, ResumeReport& report);

  // A descriptor that the caller owns. Errors: NOT_EXPORTABLE, SEGMENT_NOT_MAPPED.
  Result<int> export_segment(uint64_t index);

 private:
  struct Segment {
    enum class State : uint8_t {
      kMapped,
      kPaused,     // no memory; `contents` brings it back
      kReturning,  // memory, but not at its own address yet; belongs to the background resume
    };
    State state = State::kMapped;
    cuda::AllocationHandle handle = 0;
    Contents contents;
  };
  using Segments = std::map<uint64_t, Segment>;

  // What a pause will do with one segment.
  struct Release {
    explicit Release(uint64_t segment) : index(segment) {}

    uint64_t index;
    Division division;
    uint64_t bring_back_bytes = 0;
    uint64_t save_bytes = 0;
    Contents contents;
  };

  Pool(const Gpu& gpu, const Options& options, uint64_t segment_bytes, uint64_t base, uint64_t reserve_bytes,
       Stream stream);

  uint64_t address_of(uint64_t index) const { return base_ + index * segment_bytes(); }
  Range range_of(uint64_t index) const { return {address_of(index), address_of(index) + segment_bytes()}; }
  uint64_t mapped_bytes() const;

  // pool.cc
  Error out_of_address_space(uint64_t bytes) const;
  Status grow(BlockAllocator::Growth growth);
  Result<uint64_t> trim_locked();
  void become_absent(uint64_t index);
  Status use_arena(std::shared_ptr<Arena> arena);

  // release.cc: unmapping many segments as one step
  Status discard_all(std::vector<Release>& releases);
  Status undo_release(std::vector<Release>& releases, size_t unmapped, size_t released, bool contents_matter,
                      const Error& reason);
  void commit_release(std::vector<Release>& releases);
  Status map_back(const Release& release, bool fresh);

  // pause.cc
  std::vector<Release> plan_pause(const PauseRequest& request) const;
  Status reserve_arena(std::vector<Release>& releases);
  Status start_saving(std::vector<Release>& releases, std::vector<std::optional<Event>>& arrivals, PauseReport& report);
  Status start_copy(const SavedRange& saved);
  Status release_saved(std::vector<Release>& releases, const std::vector<std::optional<Event>>& arrivals,
                       uint64_t begin_ns, PauseReport& report);
  Status check_clean_copies(const std::vector<Release>& releases);

  // share.cc
  Status copy_shared(const std::vector<SharedPiece>& pieces, bool to_file);
  Status check_shared(const SharedPiece& piece) const;

  // frozen.cc
  bool verification_due() const { return verify_first_ == UINT64_MAX || resumes_ < verify_first_; }
  Result<std::vector<uint64_t>> checksums(const std::vector<Range>& ranges) const;
  Status verify_contents(const Contents& contents, uint64_t segment_begin, uint64_t address,
                         uint64_t& verified_bytes) const;

  // resume.cc
  bool may_stay_away(const Segment& segment, const RangeSet& leave) const;
  Status return_now(const std::vector<uint64_t>& now, const std::vector<uint64_t>& later, Restorer restorer,
                    bool verify, ResumeReport& report);
  void finish_return(uint64_t index);
  void drop_handles(const std::vector<uint64_t>& indices);

  // background_resume.cc
  class BackgroundResume;
  void run_background_resume(std::vector<uint64_t> indices, bool verify);
  void join_background_resume();

  const Gpu& gpu_;
  const std::string name_;
  const bool exportable_;
  const SegmentMemory memory_;
  const uint64_t base_;
  const uint64_t reserve_bytes_;
  Stream stream_;

  // Pause, resume, discard and set_arena one after the other. Taken before state_mutex_.
  std::mutex operation_mutex_;
  // Everything below. The background resume holds it only while it changes a segment's state.
  mutable std::mutex state_mutex_;
  BlockAllocator blocks_;
  Segments segments_;  // those that exist
  Declarations declarations_;
  FrozenCopies frozen_copies_;
  std::shared_ptr<Arena> arena_;
  SharedCopies shared_copies_;
  std::shared_ptr<Arena> shared_arena_;
  uint64_t resumes_ = 0;
  uint64_t verify_first_ = 2;

  std::thread background_;
  std::atomic<bool> background_stop_ = false;
  bool background_running_ = false;
  std::condition_variable background_ended_;
  std::optional<Error> background_error_;
  ResumeReport last_resume_;
};

}  // namespace baton::pool
