// Which stand-in memory is still open in some process as a descriptor. A GPU's memory lives as long as a
// descriptor exported from it does, held by whatever process; so does a stand-in's.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <set>

namespace baton::standin {

// A memfd is known by its inode.
struct MemoryFile {
  uint64_t device = 0;
  uint64_t inode = 0;
  auto operator<=>(const MemoryFile&) const = default;
};

// Name of every stand-in's memfd, followed by the number of the GPU.
inline constexpr char kMemoryFileName[] = "baton-standin-gpu";

// Those that any process of this user has open. Reads all of /proc: some milliseconds. A descriptor that is on its
// way between processes is not seen.
std::set<MemoryFile> memory_files_open_anywhere();

// Whether another open description of the same memfd exists than that of `fd`, which must be the only one of its
// own (not shared by a duplicate elsewhere).
bool open_elsewhere(int fd);

}  // namespace baton::standin
