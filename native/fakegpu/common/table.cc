#include "native/fakegpu/common/table.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <string_view>
#include <utility>

#include "native/fakegpu/common/export.h"
#include "native/fakegpu/common/table_layout.h"
#include "native/fakegpu/common/table_lock.h"

namespace baton::standin {
namespace {

// How often, by all processes together, it is looked whether memory without a holder is still kept alive by a
// descriptor: that reads all of /proc. Such memory is given back up to this much later than other memory.
constexpr int64_t kDescriptorsSeenNs = 10'000'000;

int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// The GPU that a memfd of ours was made for, from its name; nullopt for any other file.
std::optional<uint32_t> device_of_file(int fd) {
  std::array<char, 128> target{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  if (readlink(link.c_str(), target.data(), target.size() - 1) <= 0) return std::nullopt;
  std::string_view name = target.data();
  const std::string prefix = std::string("/memfd:") + kMemoryFileName;
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  uint32_t device = 0;
  if (std::from_chars(name.data(), name.data() + name.size(), device).ec != std::errc{}) return std::nullopt;
  return device;
}

}  // namespace

Table::HandleRecord* Table::handles() const {
  return reinterpret_cast<HandleRecord*>(header_ + 1);
}
Table::HolderRecord* Table::holders() const {
  return reinterpret_cast<HolderRecord*>(handles() + kMostHandles);
}

TableResult Table::allocate(uint32_t device, uint64_t bytes, const MemoryFile& file, Hold* out) {
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  return enter(device, bytes, file, 0, out);
}

TableResult Table::add_context(uint32_t device, Hold* out) {
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  return enter(device, context_bytes_, {}, kHandleContext, out);
}

TableResult Table::mark_exported(const Hold& hold) {
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  HandleRecord& handle = handles()[hold.handle_slot];
  if (handle.id.load(std::memory_order_relaxed) != hold.handle_id) return TableResult::kUnknownMemory;
  handle.flags.fetch_or(kHandleExported, std::memory_order_release);
  return TableResult::kOk;
}

TableResult Table::join(int fd, Hold* out, int* reopened) {
  struct stat status{};
  const auto device = device_of_file(fd);
  if (fstat(fd, &status) != 0 || !device || *device >= devices_) return TableResult::kUnknownMemory;
  const MemoryFile file{status.st_dev, status.st_ino};

  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  TableResult result = TableResult::kOk;
  if (const auto slot = find(file)) {
    result = add_holder(*slot, out);
  } else {
    result = enter(*device, static_cast<uint64_t>(status.st_size), file, kHandleExported, out);
  }
  if (result != TableResult::kOk) return result;
  // Its own description, so that a sender's copies can be told from it; opened under the lock, because
  // open_elsewhere() must not meet it half way.
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  *reopened = ::open(link.c_str(), O_RDWR | O_CLOEXEC);
  if (*reopened >= 0) return TableResult::kOk;
  complain("memory cannot be opened: error " + std::to_string(errno));
  holders()[out->holder_slot].handle_id.store(0, std::memory_order_release);
  return TableResult::kUnknownMemory;
}

TableResult Table::release(const Hold& hold, int fd) {
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  header_->changes.fetch_add(1);
  HolderRecord& holder = holders()[hold.holder_slot];
  if (holder.handle_id.load(std::memory_order_relaxed) == hold.handle_id && holder.process == self_) {
    holder.handle_id.store(0, std::memory_order_release);
  }
  HandleRecord& handle = handles()[hold.handle_slot];
  if (handle.id.load(std::memory_order_relaxed) != hold.handle_id || held_by_anyone(hold.handle_id)) {
    return TableResult::kOk;
  }
  const bool exported = (handle.flags.load(std::memory_order_relaxed) & kHandleExported) != 0;
  if (exported && fd >= 0 && open_elsewhere(fd)) return TableResult::kOk;
  handle.id.store(0, std::memory_order_release);
  return TableResult::kOk;
}

TableResult Table::release_everything_of_this_process() {
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  header_->changes.fetch_add(1);
  const uint32_t end = header_->holders_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < end; ++slot) {
    HolderRecord& holder = holders()[slot];
    if (holder.handle_id.load(std::memory_order_relaxed) != 0 && holder.process == self_) {
      holder.handle_id.store(0, std::memory_order_release);
    }
  }
  sweep();
  return TableResult::kOk;
}

TableResult Table::used_bytes(uint32_t device, uint64_t* bytes) {
  return query([&](const Snapshot& snapshot) { *bytes = snapshot.used_bytes[device]; });
}

TableResult Table::processes(uint32_t device, std::map<pid_t, uint64_t>* bytes_by_pid) {
  return query([&](const Snapshot& snapshot) { *bytes_by_pid = snapshot.bytes_by_pid[device]; });
}

// Without the lock of the file while nothing has changed: a sampler asks a thousand times a second.
template <class Read>
TableResult Table::query(const Read& read) {
  {
    const std::lock_guard in_process(mutex_);
    if (snapshot_is_true()) {
      read(snapshot_);
      return TableResult::kOk;
    }
  }
  const Lock lock(*this);
  if (!lock.held()) return TableResult::kLockTimeout;
  take_snapshot();
  read(snapshot_);
  return TableResult::kOk;
}

TableResult Table::enter(uint32_t device, uint64_t bytes, const MemoryFile& file, uint32_t flags, Hold* out) {
  if (sum_bytes(device) + bytes > bytes_per_device_) {
    sweep();
    if (sum_bytes(device) + bytes > bytes_per_device_) return TableResult::kDeviceFull;
  }
  header_->changes.fetch_add(1);
  uint32_t slot = 0;
  const uint32_t end = header_->handles_end.load(std::memory_order_relaxed);
  while (slot < end && handles()[slot].id.load(std::memory_order_relaxed) != 0)
    ++slot;
  if (slot == kMostHandles) return TableResult::kTableFull;
  if (slot == end) header_->handles_end.store(end + 1, std::memory_order_release);

  HandleRecord& handle = handles()[slot];
  const uint64_t id = header_->next_id.fetch_add(1);
  handle.bytes = bytes;
  handle.file = file;
  handle.device = device;
  handle.flags.store(flags, std::memory_order_relaxed);
  handle.id.store(id, std::memory_order_release);
  // Killed here, the handle has no holder, and the next sweep takes it away.
  const TableResult result = add_holder(slot, out);
  if (result != TableResult::kOk) handle.id.store(0, std::memory_order_release);
  return result;
}

TableResult Table::add_holder(uint32_t handle_slot, Hold* out) {
  header_->changes.fetch_add(1);
  uint32_t slot = 0;
  const uint32_t end = header_->holders_end.load(std::memory_order_relaxed);
  while (slot < end && holders()[slot].handle_id.load(std::memory_order_relaxed) != 0)
    ++slot;
  if (slot == kMostHolders) return TableResult::kTableFull;
  if (slot == end) header_->holders_end.store(end + 1, std::memory_order_release);

  const HandleRecord& handle = handles()[handle_slot];
  HolderRecord& holder = holders()[slot];
  holder.process = self_;
  holder.handle_slot = handle_slot;
  const uint64_t id = handle.id.load(std::memory_order_relaxed);
  holder.handle_id.store(id, std::memory_order_release);
  *out = {
      .handle_id = id, .handle_slot = handle_slot, .holder_slot = slot, .device = handle.device, .bytes = handle.bytes};
  return TableResult::kOk;
}

std::optional<uint32_t> Table::find(const MemoryFile& file) const {
  const uint32_t end = header_->handles_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < end; ++slot) {
    const HandleRecord& handle = handles()[slot];
    const bool memory = (handle.flags.load(std::memory_order_relaxed) & kHandleContext) == 0;
    if (handle.id.load(std::memory_order_relaxed) != 0 && memory && handle.file == file) return slot;
  }
  return std::nullopt;
}

bool Table::held_by_anyone(uint64_t handle_id) const {
  const uint32_t end = header_->holders_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < end; ++slot) {
    if (holders()[slot].handle_id.load(std::memory_order_relaxed) == handle_id) return true;
  }
  return false;
}

uint64_t Table::sum_bytes(uint32_t device) const {
  uint64_t sum = 0;
  const uint32_t end = header_->handles_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < end; ++slot) {
    const HandleRecord& handle = handles()[slot];
    if (handle.id.load(std::memory_order_relaxed) != 0 && handle.device == device) sum += handle.bytes;
  }
  return sum;
}

// Takes the dead off the table, then the handles that nobody holds any more.
void Table::sweep() {
  sweep_holders();
  sweep_handles();
}

void Table::sweep_holders() {
  const uint32_t end = header_->holders_end.load(std::memory_order_relaxed);
  std::set<ProcessId> others;
  for (uint32_t slot = 0; slot < end; ++slot) {
    const HolderRecord& holder = holders()[slot];
    if (holder.handle_id.load(std::memory_order_relaxed) != 0 && holder.process != self_) others.insert(holder.process);
  }
  const std::set<ProcessId> dead = liveness_.dead_among(others);
  if (!dead.empty()) header_->changes.fetch_add(1);
  uint32_t in_use_end = 0;
  for (uint32_t slot = 0; slot < end; ++slot) {
    HolderRecord& holder = holders()[slot];
    if (holder.handle_id.load(std::memory_order_relaxed) == 0) continue;
    if (dead.contains(holder.process)) {
      holder.handle_id.store(0, std::memory_order_release);
    } else {
      in_use_end = slot + 1;
    }
  }
  header_->holders_end.store(in_use_end, std::memory_order_release);
}

void Table::sweep_handles() {
  std::vector<bool> held(kMostHandles);
  const uint32_t holders_end = header_->holders_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < holders_end; ++slot) {
    const HolderRecord& holder = holders()[slot];
    const uint64_t id = holder.handle_id.load(std::memory_order_relaxed);
    // A holder killed while it released may be left with a handle that is gone.
    if (id != 0 && handles()[holder.handle_slot].id.load(std::memory_order_relaxed) == id) {
      held[holder.handle_slot] = true;
    }
  }
  const int64_t now = now_ns();
  const bool look = now - header_->descriptors_seen_ns.load(std::memory_order_relaxed) > kDescriptorsSeenNs;
  std::optional<std::set<MemoryFile>> open_files;
  snapshot_.orphans = false;
  const uint32_t end = header_->handles_end.load(std::memory_order_relaxed);
  uint32_t in_use_end = 0;
  for (uint32_t slot = 0; slot < end; ++slot) {
    HandleRecord& handle = handles()[slot];
    if (handle.id.load(std::memory_order_relaxed) == 0) continue;
    if (!held[slot]) {
      const bool exported = (handle.flags.load(std::memory_order_relaxed) & kHandleExported) != 0;
      if (exported && look && !open_files) {
        open_files = memory_files_open_anywhere();
        header_->descriptors_seen_ns.store(now, std::memory_order_relaxed);
      }
      const bool kept = exported && (!open_files || open_files->contains(handle.file));
      if (!kept) {
        header_->changes.fetch_add(1);
        handle.id.store(0, std::memory_order_release);
        continue;
      }
      snapshot_.orphans = true;
    }
    in_use_end = slot + 1;
  }
  header_->handles_end.store(in_use_end, std::memory_order_release);
}

void Table::take_snapshot() {
  sweep();
  snapshot_.changes = header_->changes.load();
  snapshot_.taken_ns = now_ns();
  snapshot_.used_bytes.assign(devices_, 0);
  snapshot_.bytes_by_pid.assign(devices_, {});
  snapshot_.holders.clear();
  const uint32_t handles_end = header_->handles_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < handles_end; ++slot) {
    const HandleRecord& handle = handles()[slot];
    if (handle.id.load(std::memory_order_relaxed) != 0) snapshot_.used_bytes[handle.device] += handle.bytes;
  }
  // A process may hold the same memory twice (created and imported); it uses it once.
  std::set<std::pair<uint64_t, pid_t>> counted;
  const uint32_t holders_end = header_->holders_end.load(std::memory_order_relaxed);
  for (uint32_t slot = 0; slot < holders_end; ++slot) {
    const HolderRecord& holder = holders()[slot];
    const uint64_t id = holder.handle_id.load(std::memory_order_relaxed);
    if (id == 0) continue;
    const HandleRecord& handle = handles()[holder.handle_slot];
    if (handle.id.load(std::memory_order_relaxed) != id) continue;
    uint64_t& bytes = snapshot_.bytes_by_pid[handle.device][holder.process.pid];
    if (counted.emplace(id, holder.process.pid).second) bytes += handle.bytes;
    if (holder.process != self_) snapshot_.holders.insert(holder.process);
  }
  snapshot_.valid = true;
}

// A snapshot stays true while nobody changed the table and every holder in it lives.
bool Table::snapshot_is_true() {
  if (!snapshot_.valid || snapshot_.changes != header_->changes.load()) return false;
  if (snapshot_.orphans && now_ns() - snapshot_.taken_ns > kDescriptorsSeenNs) return false;
  return liveness_.dead_among(snapshot_.holders).empty();
}

}  // namespace baton::standin
