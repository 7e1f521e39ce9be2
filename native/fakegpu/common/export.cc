#include "native/fakegpu/common/export.h"

#include <unistd.h>

namespace baton::standin {

void complain(const std::string& text) {
  // One write, so that lines of several processes do not mix.
  const std::string line = "baton stand-in GPU: " + text + "\n";
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace baton::standin

const char* batonStandinVersion() {
  return "1";
}
