#include "native/fakegpu/common/descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <memory>
#include <string>
#include <string_view>

namespace baton::standin {
namespace {

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

void add_open_files(const std::string& fd_folder, std::set<MemoryFile>* files) {
  const Directory folder(opendir(fd_folder.c_str()));
  if (!folder) return;  // ended, or not ours to look at
  const std::string wanted = std::string("/memfd:") + kMemoryFileName;
  while (const dirent* entry = readdir(folder.get())) {
    std::array<char, 128> target{};
    const ssize_t length = readlinkat(dirfd(folder.get()), entry->d_name, target.data(), target.size() - 1);
    if (length <= 0 || !std::string_view(target.data()).starts_with(wanted)) continue;
    struct stat status{};
    if (fstatat(dirfd(folder.get()), entry->d_name, &status, 0) == 0) files->insert({status.st_dev, status.st_ino});
  }
}

}  // namespace

std::set<MemoryFile> memory_files_open_anywhere() {
  std::set<MemoryFile> files;
  const Directory proc(opendir("/proc"));
  if (!proc) return files;
  while (const dirent* entry = readdir(proc.get())) {
    if (std::isdigit(static_cast<unsigned char>(entry->d_name[0])) == 0) continue;
    add_open_files(std::string("/proc/") + entry->d_name + "/fd", &files);
  }
  return files;
}

bool open_elsewhere(int fd) {
  // The kernel grants a write lease only on a file that nobody else has open, mappings included. Should somebody
  // open it in the instant before it is given back, the signal must be a harmless one.
  fcntl(fd, F_SETSIG, SIGURG);
  if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0) {
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return false;
  }
  return errno == EAGAIN;
}

}  // namespace baton::standin
