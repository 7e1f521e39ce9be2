#include "native/guard/options.h"

#include <charconv>
#include <cstring>
#include <limits>
#include <string_view>

namespace baton::guard {
namespace {

Error bad(const std::string& message) {
  return Error{
      .code = "BAD_ARGUMENT", .message = message, .expected = "", .found = "", .action = kUsage, .driver_result = {}};
}

template <class T>
bool parse_number(std::string_view text, T lowest, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out >= lowest;
}

}  // namespace

Result<Options> parse_options(int count, char** arguments) {
  Options options;
  bool has_start = false;
  int next = 1;
  for (; next < count; next += 2) {
    const std::string_view name = arguments[next];
    if (name == "--") break;
    if (next + 1 >= count) return bad("no value for " + std::string(name));
    const std::string_view value = arguments[next + 1];
    bool good = false;
    if (name == "--parent") {
      good = parse_number<pid_t>(value, 1, options.parent);
    } else if (name == "--parent-start") {
      good = has_start = parse_number<uint64_t>(value, 0, options.parent_start);
    } else if (name == "--stopped-deadline-ms") {
      good = parse_number<int64_t>(value, 0, options.stopped_deadline_ms);
    } else if (name == "--grace-ms") {
      good = parse_number<int64_t>(value, 0, options.grace_ms);
    } else if (name == "--remove" || name == "--shared-memory" || name == "--record") {
      // Whatever folder the guard is in, and never the root.
      good = value.size() > 1 && value.front() == '/';
      if (name == "--remove") options.remove.emplace_back(value);
      if (name == "--shared-memory") options.shared_memory = value;
      if (name == "--record") options.record = value;
    } else {
      return bad("unknown option " + std::string(name));
    }
    if (!good) return bad("not a value for " + std::string(name) + ": " + std::string(value));
  }
  if (options.parent == 0 || !has_start) return bad("--parent and --parent-start are needed");
  if (next + 1 >= count) return bad("no command after --");
  options.command = arguments + next + 1;
  return options;
}

}  // namespace baton::guard
