// What several processes have alike, saved by one of them for all.
#include "native/pool/host_pages.h"
#include "native/pool/pool.h"

namespace baton::pool {

Status Pool::open_shared(int fd, uint64_t bytes) {
  const uint64_t whole = round_up(bytes, page_bytes());
  BATON_ASSIGN(auto arena, Arena::open(gpu_, fd, 0, whole));
  BATON_TRY(arena->grow(whole));
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  const std::lock_guard lock(state_mutex_);
  shared_arena_ = std::move(arena);
  shared_copies_.clear();
  return {};
}

Status Pool::write_shared(const std::vector<SharedPiece>& pieces) {
  return copy_shared(pieces, true);
}

Status Pool::adopt_shared(const std::vector<SharedPiece>& pieces) {
  return copy_shared(pieces, false);
}

Status Pool::copy_shared(const std::vector<SharedPiece>& pieces, bool to_file) {
  const std::lock_guard operation(operation_mutex_);
  join_background_resume();
  const std::lock_guard lock(state_mutex_);
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  for (const SharedPiece& piece : pieces)
    BATON_TRY(check_shared(piece));
  // Whatever still writes or reads what is copied here.
  BATON_TRY(gpu_.driver().cuCtxSynchronize());
  for (const SharedPiece& piece : pieces) {
    uint64_t address = piece.where.begin;
    for (const Extent& extent : shared_arena_->extents_of(piece.offset, piece.where.bytes())) {
      std::byte* host = shared_arena_->at(extent.offset);
      BATON_TRY(to_file ? gpu_.driver().cuMemcpyDtoHAsync(host, address, extent.bytes, stream_.get())
                        : gpu_.driver().cuMemcpyHtoDAsync(address, host, extent.bytes, stream_.get()));
      address += extent.bytes;
    }
  }
  BATON_TRY(stream_.synchronize());
  if (to_file) return {};
  for (const SharedPiece& piece : pieces)
    frozen_copies_.forget(piece.where);
  shared_copies_.add(shared_arena_, pieces);
  return {};
}

Status Pool::check_shared(const SharedPiece& piece) const {
  const bool in_file = shared_arena_ && piece.offset <= shared_arena_->bytes() &&
                       piece.where.bytes() <= shared_arena_->bytes() - piece.offset;
  bool mapped = piece.where.begin < piece.where.end && owns(piece.where.begin) && owns(piece.where.end - 1);
  const uint64_t last = (piece.where.end - 1 - base_) / segment_bytes();
  for (uint64_t index = (piece.where.begin - base_) / segment_bytes(); mapped && index <= last; ++index) {
    const auto segment = segments_.find(index);
    mapped = segment != segments_.end() && segment->second.state == Segment::State::kMapped;
  }
  if (in_file && mapped) return {};
  return Error{.code = "INVALID_ARGUMENT",
               .message = "A piece that pool '" + name_ + "' should share is not usable.",
               .expected = "a mapped range of the pool, and as many bytes of an open shared file",
               .found = std::to_string(piece.where.bytes()) + " bytes at " + std::to_string(piece.where.begin) +
                        (mapped ? "" : ", not mapped") + "; offset " + std::to_string(piece.offset) + " of " +
                        std::to_string(shared_arena_ ? shared_arena_->bytes() : 0),
               .action = "Share what lives in the pool while it is not paused.",
               .driver_result = std::nullopt};
}

}  // namespace baton::pool
