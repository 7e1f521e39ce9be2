#include "native/fakegpu/common/config.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace baton::standin {
namespace {

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

// A whole decimal number in [least, most], or a problem.
template <class T>
bool read_number(const char* name, T least, T most, std::optional<T>* out, std::string* problem) {
  const char* text = variable(name);
  if (text == nullptr) return true;
  const std::string_view digits = text;
  T value{};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size() || value < least || value > most) {
    *problem = std::string(name) + " is \"" + text + "\", expected a whole number from " + std::to_string(least) +
               " to " + std::to_string(most);
    return false;
  }
  *out = value;
  return true;
}

bool read_bandwidth(Bandwidth* bandwidth, std::string* problem) {
  const char* text = variable("BATON_STANDIN_BANDWIDTH");
  if (text == nullptr) return true;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    const std::string_view digits = equals == std::string_view::npos ? std::string_view{} : item.substr(equals + 1);
    double* target = name == "pinned"     ? &bandwidth->pinned
                     : name == "pageable" ? &bandwidth->pageable
                     : name == "device"   ? &bandwidth->device
                     : name == "peer"     ? &bandwidth->peer
                                          : nullptr;
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    // Written so that NaN fails too.
    const bool sensible = value > 0 && value < 1e9;
    if (target == nullptr || error != std::errc{} || end != digits.data() + digits.size() || !sensible) {
      *problem = "BATON_STANDIN_BANDWIDTH has \"" + std::string(item) +
                 "\", expected pinned=, pageable=, device= or peer= and 10^9 bytes/s";
      return false;
    }
    *target = value * 1e9;
  }
  return true;
}

bool read_async(bool* lazy, std::string* problem) {
  const char* text = variable("BATON_STANDIN_ASYNC");
  if (text == nullptr || std::string_view(text) == "eager") return true;
  if (std::string_view(text) == "lazy") {
    *lazy = true;
    return true;
  }
  *problem = std::string("BATON_STANDIN_ASYNC is \"") + text + "\", expected eager or lazy";
  return false;
}

bool read_peers(bool* peers, std::string* problem) {
  const char* text = variable("BATON_STANDIN_PEERS");
  if (text == nullptr || std::string_view(text) == "all") return true;
  *peers = false;
  if (std::string_view(text) == "none") return true;
  *problem = std::string("BATON_STANDIN_PEERS is \"") + text + "\", expected all or none";
  return false;
}

}  // namespace

std::optional<Config> read_config(std::string* problem) {
  Config config;
  const char* table = variable("BATON_STANDIN_TABLE");
  if (table == nullptr) {
    *problem = "BATON_STANDIN_TABLE is not set: it names the file that describes the stand-in GPUs";
    return std::nullopt;
  }
  config.table = table;
  constexpr uint64_t kMostBytes = uint64_t{1} << 46;
  if (!read_number<uint32_t>("BATON_STANDIN_DEVICES", 1, kMostDevices, &config.devices, problem) ||
      !read_number<uint64_t>("BATON_STANDIN_BYTES", 1, kMostBytes, &config.bytes_per_device, problem) ||
      !read_number<uint64_t>("BATON_STANDIN_GRANULARITY", 4096, kMostBytes, &config.granularity_bytes, problem) ||
      !read_number<uint64_t>("BATON_STANDIN_CONTEXT_BYTES", 0, kMostBytes, &config.context_bytes, problem) ||
      !read_bandwidth(&config.bandwidth, problem) || !read_async(&config.lazy, problem) ||
      !read_peers(&config.peers, problem)) {
    return std::nullopt;
  }
  const uint64_t granularity = config.granularity_bytes.value_or(kDefaultGranularityBytes);
  if ((granularity & (granularity - 1)) != 0 || granularity % static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) != 0) {
    *problem = "BATON_STANDIN_GRANULARITY is " + std::to_string(granularity) +
               ", expected a power of two that is a multiple of the page size";
    return std::nullopt;
  }
  return config;
}

}  // namespace baton::standin
