// What a run leaves in the file system when its controller is gone: paths that the controller named, and shared memory
// that processes below the guard were seen to map. Nothing else is touched: other runs, and other containers with the
// same /dev/shm, have files of the same kind.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "native/guard/options.h"

namespace baton::guard {

class Leftovers {
 public:
  explicit Leftovers(const Options& options);

  // Notes shared memory with the prefix of the options that a process below this one maps. Cheap while nothing new is
  // there; what is not found to be mapped after a few looks is somebody else's.
  void look();

  // Removes the paths of the options and the shared memory that was noted. To be called when nothing below lives.
  void remove() const;

 private:
  // A file, whatever it is called: device and inode.
  using File = std::pair<dev_t, ino_t>;
  struct Seen {
    std::string path;
    int64_t changed_ns = 0;
    int looks = 0;
    bool mapped = false;
  };

  void note_mapped();
  void record(const File& file, const std::string& path) const;

  const std::vector<std::string> paths_;
  const std::string record_;
  std::string folder_;
  std::string prefix_;
  std::map<File, Seen> seen_;
};

}  // namespace baton::guard
