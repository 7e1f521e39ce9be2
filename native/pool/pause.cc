// Pausing: which segments go, what of them is saved, and giving their memory back.
#include <algorithm>
#include <optional>
#include <tuple>

#include "native/copy/clock.h"
#include "native/pool/pool.h"

namespace baton::pool {

Result<PauseReport> Pool::pause(const PauseRequest& request) {
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  const std::lock_guard lock(state_mutex_);
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  PauseReport report;
  const uint64_t begin_ns = now_ns();
  const uint64_t simulated_before_ns = stream_.simulated_ns();

  std::vector<Release> releases = plan_pause(request);
  BATON_TRY(reserve_arena(releases));
  // The streams of the process have work under way that still writes what is saved here.
  BATON_TRY(gpu_.driver().cuCtxSynchronize());
  BATON_TRY(check_clean_copies(releases));
  std::vector<std::optional<Event>> arrivals;
  if (Status started = start_saving(releases, arrivals, report); !started) {
    // Copies that are under way write to places in the arena that are free again after this.
    static_cast<void>(stream_.synchronize());
    return started.error();
  }
  BATON_TRY(release_saved(releases, arrivals, begin_ns, report));

  report.released_bytes = releases.size() * segment_bytes();
  report.dead_bytes = report.released_bytes - report.saved_bytes - report.clean_bytes;
  // Only now: a pause that failed leaves no copy that a later one would take for clean.
  for (const Release& release : releases) {
    for (const auto& saved : release.contents.saved) {
      if (saved->checksum) frozen_copies_.keep(saved);
    }
  }
  commit_release(releases);
  report.kept_bytes = mapped_bytes();
  report.simulated_ns = simulated_difference_ns(simulated_before_ns, stream_.simulated_ns());
  report.total_ns = now_ns() - begin_ns;
  return report;
}

std::vector<Pool::Release> Pool::plan_pause(const PauseRequest& request) const {
  // A range that no block covers is not live, whoever says so.
  const RangeSet blocks(blocks_.blocks());
  const RangeSet live = request.live ? request.live->intersected(blocks) : blocks;
  std::vector<Release> candidates;
  for (const auto& [index, segment] : segments_) {
    if (segment.state != Segment::State::kMapped || request.keep.intersects(range_of(index))) continue;
    Release release(index);
    release.contents.live = live.clipped(range_of(index));
    release.division = declarations_.divide(release.contents.live);
    release.save_bytes = release.division.saved.bytes();
    for (const Range& range : release.division.frozen.ranges()) {
      if (!frozen_copies_.find(range) && !shared_copies_.find(range)) release.save_bytes += range.bytes();
    }
    release.bring_back_bytes = release.division.saved.bytes() + release.division.frozen.bytes();
    candidates.push_back(std::move(release));
  }
  std::sort(candidates.begin(), candidates.end(), [](const Release& a, const Release& b) {
    return std::tie(a.bring_back_bytes, a.save_bytes, a.index) < std::tie(b.bring_back_bytes, b.save_bytes, b.index);
  });
  const uint64_t enough = request.want_bytes / segment_bytes() + (request.want_bytes % segment_bytes() != 0 ? 1 : 0);
  if (candidates.size() > enough)
    candidates.erase(candidates.begin() + static_cast<std::ptrdiff_t>(enough), candidates.end());
  // In address order, so that copies and the arena run through memory.
  std::sort(candidates.begin(), candidates.end(), [](const Release& a, const Release& b) { return a.index < b.index; });
  return candidates;
}

// Gives each range that will be saved its place in the arena, before anything is copied.
Status Pool::reserve_arena(std::vector<Release>& releases) {
  uint64_t wanted_bytes = 0;
  for (const Release& release : releases) {
    for (const Range& range : release.division.saved.ranges())
      wanted_bytes += Arena::space_of(range.bytes());
    for (const Range& range : release.division.frozen.ranges()) {
      if (!frozen_copies_.find(range) && !shared_copies_.find(range)) wanted_bytes += Arena::space_of(range.bytes());
    }
  }
  if (arena_) BATON_TRY(arena_->make_room(wanted_bytes));
  const auto reserve = [&](Release& release, Range range, bool frozen) -> bool {
    if (!arena_) return false;
    auto extents = arena_->take(range.bytes());
    if (!extents) return false;
    auto saved = std::make_shared<SavedRange>(arena_, range, *std::move(extents));
    if (frozen) saved->checksum = 0;  // computed when it is saved
    release.contents.saved.push_back(std::move(saved));
    return true;
  };
  bool fits = true;
  for (Release& release : releases) {
    for (const Range& range : release.division.saved.ranges())
      fits = fits && reserve(release, range, false);
    for (const Range& range : release.division.frozen.ranges()) {
      if (auto clean = frozen_copies_.find(range)) {
        release.contents.saved.push_back(std::move(clean));
        continue;
      }
      if (auto shared = shared_copies_.find(range)) {
        shared->checksum = 0;  // computed now, as if it were saved now
        release.contents.saved.push_back(std::move(shared));
        continue;
      }
      fits = fits && reserve(release, range, true);
    }
    release.contents.zeros = release.division.zero.ranges();
  }
  if (fits) return {};
  // What was reserved so far is given back first, so that the error tells what the arena can offer.
  for (Release& release : releases)
    release.contents.saved.clear();
  const std::string wanted = std::to_string(wanted_bytes) + " bytes";
  if (!arena_) {
    return Error{.code = "NO_ARENA",
                 .message = "Pool '" + name_ + "' has something to save and no arena.",
                 .expected = "an arena with " + wanted + " free",
                 .found = "none",
                 .action = "Set an arena before the pool is paused.",
                 .driver_result = std::nullopt};
  }
  return Error{.code = "ARENA_TOO_SMALL",
               .message = "What pool '" + name_ + "' has to save does not fit its arena.",
               .expected = wanted + " free",
               .found = std::to_string(arena_->free_bytes()) + " of " + std::to_string(arena_->bytes()) + " bytes free",
               .action = "Give a larger arena, or declare what need not be saved.",
               .driver_result = std::nullopt};
}

// Starts all copies to the arena. `arrivals` gets for each release what tells when its last copy is done; nothing where
// there is none. Frozen ranges are summed up meanwhile.
Status Pool::start_saving(std::vector<Release>& releases, std::vector<std::optional<Event>>& arrivals,
                          PauseReport& report) {
  std::vector<SavedRange*> frozen;
  for (Release& release : releases) {
    std::optional<Event>& event = arrivals.emplace_back();
    for (const auto& saved : release.contents.saved) {
      if (saved->checksum && frozen_copies_.find(saved->where()) == saved) {
        report.clean_bytes += saved->where().bytes();
        continue;
      }
      if (saved->borrowed()) {
        report.clean_bytes += saved->where().bytes();
        frozen.push_back(saved.get());
        continue;
      }
      BATON_TRY(start_copy(*saved));
      if (!event) {
        BATON_ASSIGN(event, Event::create(gpu_));
      }
      report.saved_bytes += saved->where().bytes();
      if (saved->checksum) frozen.push_back(saved.get());
    }
    if (event) BATON_TRY(event->record(stream_));
  }

  std::vector<Range> ranges;
  for (const SavedRange* saved : frozen)
    ranges.push_back(saved->where());
  BATON_ASSIGN(const std::vector<uint64_t> sums, checksums(ranges));
  for (size_t i = 0; i < frozen.size(); ++i)
    frozen[i]->checksum = sums[i];
  return {};
}

Status Pool::start_copy(const SavedRange& saved) {
  uint64_t source = saved.where().begin;
  for (const Extent& extent : saved.extents()) {
    BATON_TRY(gpu_.driver().cuMemcpyDtoHAsync(saved.arena().at(extent.offset), source, extent.bytes, stream_.get()));
    source += extent.bytes;
  }
  return {};
}

// Gives each segment's memory back as soon as its bytes are in the arena, while those of the next ones are on their
// way.
Status Pool::release_saved(std::vector<Release>& releases, const std::vector<std::optional<Event>>& arrivals,
                           uint64_t begin_ns, PauseReport& report) {
  size_t unmapped = 0;
  size_t released = 0;
  const auto give_back = [&]() -> Status {
    for (size_t i = 0; i < releases.size(); ++i) {
      if (arrivals[i]) {
        BATON_TRY(arrivals[i]->synchronize());
        report.copy_ns = now_ns() - begin_ns;
      }
      BATON_TRY(memory_.unmap(address_of(releases[i].index)));
      ++unmapped;
      BATON_TRY(memory_.release(segments_[releases[i].index].handle));
      ++released;
    }
    return {};
  };
  const Status status = give_back();
  if (status) return {};
  // Copies that are under way write to places in the arena that may be free again after this.
  static_cast<void>(stream_.synchronize());
  return undo_release(releases, unmapped, released, true, status.error());
}

Result<PauseReport> Pool::discard() {
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  const std::lock_guard lock(state_mutex_);
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  const uint64_t begin_ns = now_ns();
  BATON_TRY(gpu_.driver().cuCtxSynchronize());

  const RangeSet live(blocks_.blocks());
  std::vector<Release> releases;
  for (const auto& [index, segment] : segments_) {
    if (segment.state != Segment::State::kMapped) continue;
    Release release(index);
    release.contents.zeros = declarations_.divide(live.clipped(range_of(index))).zero.ranges();
    releases.push_back(std::move(release));
  }
  BATON_TRY(discard_all(releases));
  commit_release(releases);
  for (auto& [index, segment] : segments_)
    segment.contents.saved.clear();
  frozen_copies_.clear();
  shared_copies_.clear();

  PauseReport report;
  report.released_bytes = releases.size() * segment_bytes();
  report.dead_bytes = report.released_bytes;
  report.simulated_ns = simulated_difference_ns(stream_.simulated_ns(), stream_.simulated_ns());
  report.total_ns = now_ns() - begin_ns;
  return report;
}

}  // namespace baton::pool
