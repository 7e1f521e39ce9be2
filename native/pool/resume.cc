// Bringing paused segments back at their own addresses.
#include "native/copy/clock.h"
#include "native/pool/pool.h"

namespace baton::pool {

Result<ResumeReport> Pool::resume(const RangeSet& first, bool wait, const RangeSet& leave) {
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  std::unique_lock lock(state_mutex_);
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  const uint64_t begin_ns = now_ns();
  const uint64_t simulated_before_ns = stream_.simulated_ns();

  std::vector<uint64_t> now;
  std::vector<uint64_t> later;
  std::vector<uint64_t> unused;
  for (const auto& [index, segment] : segments_) {
    if (segment.state != Segment::State::kPaused) continue;
    if (!blocks_.holds_block(index)) {
      unused.push_back(index);  // all its blocks were freed meanwhile
    } else if (may_stay_away(segment, leave)) {
      continue;
    } else if (wait || first.intersects(range_of(index))) {
      now.push_back(index);
    } else {
      later.push_back(index);
    }
  }
  for (const uint64_t index : unused)
    become_absent(index);

  ResumeReport report;
  const bool verify = verification_due();
  // Whoever does not wait for the rest begins to compute as soon as `now` is back: until then the GPU has nothing to
  // do, and an engine has just given its memory back.
  BATON_TRY(return_now(now, later, wait ? Restorer::kCopyEngine : Restorer::kKernel, verify, report));
  for (const uint64_t index : now)
    finish_return(index);
  ++resumes_;
  background_error_.reset();
  report.mapped_bytes = now.size() * segment_bytes();
  report.pending_bytes = later.size() * segment_bytes();
  report.simulated_ns = simulated_difference_ns(simulated_before_ns, stream_.simulated_ns());
  report.total_ns = now_ns() - begin_ns;
  last_resume_ = report;
  if (!later.empty()) {
    for (const uint64_t index : later)
      segments_[index].state = Segment::State::kReturning;
    background_running_ = true;
    background_stop_ = false;
    background_ = std::thread(&Pool::run_background_resume, this, std::move(later), verify);
  }
  return report;
}

// Whether nothing else was in use there. A segment in which nothing was in use at all comes back: PyTorch takes the
// free blocks that it keeps for usable.
bool Pool::may_stay_away(const Segment& segment, const RangeSet& leave) const {
  const RangeSet& live = segment.contents.live;
  return !live.empty() && live.subtracted(leave).empty();
}

// Takes memory for all, maps and fills `now`. Taking memory costs some tenths of a millisecond a segment: it goes on
// while bytes are arriving. That there is none for `later` is learned here, not in the background. When it fails, all
// are as before.
Status Pool::return_now(const std::vector<uint64_t>& now, const std::vector<uint64_t>& later, Restorer restorer,
                        bool verify, ResumeReport& report) {
  const uint64_t begin_ns = now_ns();
  std::vector<uint64_t> taken;
  std::vector<uint64_t> mapped;
  const auto take = [&](uint64_t index) -> Status {
    BATON_ASSIGN(segments_[index].handle, memory_.create());
    taken.push_back(index);
    return {};
  };
  const auto bring_back = [&]() -> Status {
    for (const uint64_t index : now) {
      BATON_TRY(take(index));
      const uint64_t address = address_of(index);
      const Segment& segment = segments_[index];
      BATON_TRY(memory_.map(address, segment.handle));
      mapped.push_back(index);
      BATON_TRY(memory_.start_restore(segment.contents, address, address, restorer, stream_, report.copied_bytes));
    }
    for (const uint64_t index : later)
      BATON_TRY(take(index));
    BATON_TRY(stream_.synchronize());
    report.copy_ns = now_ns() - begin_ns;
    if (!verify) return {};
    for (const uint64_t index : now) {
      const uint64_t address = address_of(index);
      BATON_TRY(verify_contents(segments_[index].contents, address, address, report.verified_bytes));
    }
    return {};
  };
  Status status = bring_back();
  if (status) return status;
  static_cast<void>(stream_.synchronize());
  for (const uint64_t index : mapped)
    static_cast<void>(memory_.unmap(address_of(index)));
  drop_handles(taken);
  return status;
}

// The segment is mapped at its own address and has its bytes.
void Pool::finish_return(uint64_t index) {
  Segment& segment = segments_[index];
  segment.state = Segment::State::kMapped;
  segment.contents = {};
  blocks_.set_place(index, BlockAllocator::Place::kUsable);
}

// Gives memory back that no mapping uses; the segments are paused as before.
void Pool::drop_handles(const std::vector<uint64_t>& indices) {
  for (const uint64_t index : indices) {
    Segment& segment = segments_[index];
    static_cast<void>(memory_.release(segment.handle));
    segment.handle = 0;
    segment.state = Segment::State::kPaused;
  }
}

}  // namespace baton::pool
