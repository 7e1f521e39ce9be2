// Host memory of a file in large pages where the kernel can: it comes five times as fast, and so does registering it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace baton::pool {

// Of small pages.
uint64_t page_bytes();

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Maps `bytes` of a file at `offset` so that its large pages are large pages of the mapping; readable, writable,
// shared. nullptr with errno when that cannot be.
std::byte* map_shared(int fd, uint64_t offset, uint64_t bytes);

// Brings in `bytes` at `memory`, which is `fd` at `offset`, without changing what they hold. 0, or the errno of a page
// that cannot be had.
int bring_in(int fd, uint64_t offset, std::byte* memory, uint64_t bytes);

}  // namespace baton::pool
