#include "native/guard/leftovers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "native/system/descriptor.h"
#include "native/system/processes.h"

namespace baton::guard {
namespace {

namespace files = std::filesystem;

// A file is mapped microseconds after it is made: after so many looks without it is not ours.
constexpr int kMostLooks = 20;

}  // namespace

Leftovers::Leftovers(const Options& options)
    : paths_(options.remove.begin(), options.remove.end()), record_(options.record) {
  const std::string shared = options.shared_memory;
  const size_t slash = shared.rfind('/');
  if (slash == std::string::npos) return;
  folder_ = shared.substr(0, slash);
  prefix_ = shared.substr(slash + 1);
}

void Leftovers::look() {
  if (folder_.empty()) return;
  bool open = false;
  std::error_code ignored;
  for (files::directory_iterator entry(folder_, ignored), end; entry != end; entry.increment(ignored)) {
    if (!entry->path().filename().string().starts_with(prefix_)) continue;
    struct stat status{};
    if (::lstat(entry->path().c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    Seen& seen = seen_[File{status.st_dev, status.st_ino}];
    // A file that was left by others may be taken up by ours, and an inode may be another file by now.
    const int64_t changed_ns = status.st_ctim.tv_sec * 1'000'000'000LL + status.st_ctim.tv_nsec;
    if (seen.changed_ns != changed_ns && !seen.mapped) seen = Seen{.path = entry->path(), .changed_ns = changed_ns};
    if (seen.mapped || seen.looks == kMostLooks) continue;
    seen.looks += 1;
    open = true;
  }
  if (open) note_mapped();
}

// A line of maps: address perms offset major:minor inode path. The path is as this process would see it, which another
// mount of the same memory is not; device and inode are the same everywhere.
void Leftovers::note_mapped() {
  for (const ProcessInfo& info : descendants_of(::getpid())) {
    std::ifstream maps("/proc/" + std::to_string(info.pid) + "/maps");
    for (std::string line; std::getline(maps, line);) {
      unsigned major = 0;
      unsigned minor = 0;
      uintmax_t inode = 0;
      if (std::sscanf(line.c_str(), "%*s %*s %*s %x:%x %" SCNuMAX, &major, &minor, &inode) != 3) continue;
      const auto found = seen_.find(File{makedev(major, minor), static_cast<ino_t>(inode)});
      if (found == seen_.end() || found->second.mapped) continue;
      found->second.mapped = true;
      record(found->first, found->second.path);
    }
  }
}

// For whoever cleans up when this process does not.
void Leftovers::record(const File& file, const std::string& path) const {
  if (record_.empty()) return;
  const Descriptor out(::open(record_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!out) return;
  const std::string line = std::to_string(file.first) + ' ' + std::to_string(file.second) + ' ' + path + '\n';
  // One write of a short line to an append-only file is not mixed with another guard's.
  [[maybe_unused]] const ssize_t written = ::write(out.get(), line.data(), line.size());
}

void Leftovers::remove() const {
  for (const auto& [file, seen] : seen_) {
    struct stat status{};
    if (!seen.mapped || ::lstat(seen.path.c_str(), &status) != 0) continue;
    if (File{status.st_dev, status.st_ino} == file) ::unlink(seen.path.c_str());
  }
  std::error_code ignored;
  for (const std::string& path : paths_)
    files::remove_all(path, ignored);
}

}  // namespace baton::guard
