// baton-probe: asks the drivers for `baton doctor`. A process of its own, because a sick driver hangs or crashes
// whoever calls it.
#include <sys/prctl.h>
#include <sys/resource.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "native/probe/probes.h"

namespace {

constexpr int kExitUsage = 125;

template <class T>
bool number(std::string_view text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size();
}

int usage() {
  std::fprintf(stderr, "usage: baton-probe nvml | cuda REGISTER_BYTES\n");
  return kExitUsage;
}

}  // namespace

int main(int count, char** arguments) {
  // It ends with who asked; and a crash is an answer, not worth a core dump.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const rlimit none{.rlim_cur = 0, .rlim_max = 0};
  ::setrlimit(RLIMIT_CORE, &none);

  const std::string_view what = count > 1 ? arguments[1] : "";
  if (what == "nvml" && count == 2) {
    baton::probe::probe_nvml();
    return 0;
  }
  uint64_t bytes = 0;
  if (what == "cuda" && count == 3 && number(arguments[2], bytes)) {
    baton::probe::probe_cuda(bytes);
    return 0;
  }
  int32_t ordinal = 0;
  int32_t fd = -1;
  uint32_t seed = 0;
  if (what == "import" && count == 6 && number(arguments[2], ordinal) && number(arguments[3], fd) &&
      number(arguments[4], bytes) && number(arguments[5], seed)) {
    return baton::probe::import_and_compare(ordinal, fd, bytes, seed);
  }
  return usage();
}
