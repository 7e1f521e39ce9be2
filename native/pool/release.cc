// Giving the memory of many segments back as one step: all of it, or none.
#include "native/pool/pool.h"

namespace baton::pool {

// What was not saved: first everything is unmapped, then released. Until the first handle is released, mapping the
// old handles again undoes all of it.
Status Pool::discard_all(std::vector<Release>& releases) {
  for (size_t i = 0; i < releases.size(); ++i) {
    Status status = memory_.unmap(address_of(releases[i].index));
    if (!status) return undo_release(releases, i, 0, false, status.error());
  }
  for (size_t i = 0; i < releases.size(); ++i) {
    Status status = memory_.release(segments_[releases[i].index].handle);
    if (!status) return undo_release(releases, releases.size(), i, false, status.error());
  }
  return {};
}

// The first `released` have no memory any more, the first `unmapped` no mapping. Always gives an error: `reason`
// when everything is as before, ROLLBACK_INCOMPLETE when some segments had to stay away. Those can be resumed.
Status Pool::undo_release(std::vector<Release>& releases, size_t unmapped, size_t released, bool contents_matter,
                          const Error& reason) {
  std::vector<Release> lost;
  for (size_t i = 0; i < unmapped; ++i) {
    const bool fresh = i < released;
    // Memory that came back without its bytes would look as if nothing had happened.
    const bool back = (!fresh || contents_matter) && map_back(releases[i], fresh).ok();
    if (back) continue;
    if (!fresh) static_cast<void>(memory_.release(segments_[releases[i].index].handle));
    lost.push_back(std::move(releases[i]));
  }
  if (lost.empty()) return reason;
  commit_release(lost);
  Error error = reason;
  error.code = "ROLLBACK_INCOMPLETE";
  error.message = std::to_string(lost.size()) + " segments of pool '" + name_ +
                  "' could not be mapped back after a failure (" + reason.code + ": " + reason.message + ").";
  error.action = contents_matter ? "They are paused and lose nothing; resume the pool." : "They are discarded.";
  return error;
}

// Maps a segment at its own address again; `fresh`: with new memory and its saved contents.
Status Pool::map_back(const Release& release, bool fresh) {
  const uint64_t address = address_of(release.index);
  cuda::AllocationHandle handle = segments_[release.index].handle;
  if (!fresh) return memory_.map(address, handle);

  BATON_ASSIGN(handle, memory_.create());
  Status status = memory_.map(address, handle);
  if (status) {
    uint64_t copied_bytes = 0;
    status = memory_.start_restore(release.contents, address, address, Restorer::kCopyEngine, stream_, copied_bytes);
    const Status copied = stream_.synchronize();
    if (status && !copied) status = copied;
    if (!status) static_cast<void>(memory_.unmap(address));
  }
  if (!status) {
    static_cast<void>(memory_.release(handle));
    return status;
  }
  segments_[release.index].handle = handle;
  return {};
}

void Pool::commit_release(std::vector<Release>& releases) {
  for (Release& release : releases) {
    if (!blocks_.holds_block(release.index)) {
      become_absent(release.index);
      continue;
    }
    blocks_.set_place(release.index, BlockAllocator::Place::kAway);
    segments_[release.index] = Segment{Segment::State::kPaused, 0, std::move(release.contents)};
  }
}

}  // namespace baton::pool
