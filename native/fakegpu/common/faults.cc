#include "native/fakegpu/common/faults.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>
#include <utility>

#include "native/fakegpu/common/registry.h"

namespace baton::standin {
namespace {

// The part before `separator`; `rest` becomes what is after it.
std::string_view take(std::string_view* rest, char separator) {
  const size_t at = rest->find(separator);
  const std::string_view head = rest->substr(0, at);
  *rest = at == std::string_view::npos ? std::string_view{} : rest->substr(at + 1);
  return head;
}

template <class T>
bool number(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc{} && end == text.data() + text.size() && *out >= T{0};
}

template <class T>
bool number(std::string_view text, std::optional<T>* out) {
  return number(text, &out->emplace());
}

bool set_key(FaultRule* rule, std::string_view key, std::string_view value) {
  if (key == "after") return number(value, &rule->after);
  if (key == "count") return number(value, &rule->count);
  if (key == "result") return number(value, &rule->result) && *rule->result != 0;
  if (key == "delay_ms") return number(value, &rule->delay_ms);
  if (key == "signal") return number(value, &rule->signal) && *rule->signal > 0 && *rule->signal < NSIG;
  if (key == "device") return number(value, &rule->device);
  if (key == "pid") return number(value, &rule->pid);
  if (key == "role" && !value.empty()) {
    rule->role = value;
    return true;
  }
  return false;
}

}  // namespace

std::string_view without_version(std::string_view function) {
  const size_t at = function.rfind("_v");
  if (at == std::string_view::npos || at + 2 == function.size()) return function;
  const bool digits = function.find_first_not_of("0123456789", at + 2) == std::string_view::npos;
  return digits ? function.substr(0, at) : function;
}

std::optional<std::vector<FaultRule>> parse_faults(std::string_view text, const KnowsFunction& knows_function,
                                                   std::string* problem) {
  std::vector<FaultRule> rules;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view whole = take(&rest, ',');
    std::string_view parts = whole;
    FaultRule rule;
    rule.function = without_version(take(&parts, ':'));
    const auto fail = [&](const std::string& why) {
      *problem = "BATON_STANDIN_FAULTS: in \"" + std::string(whole) + "\" " + why;
      return std::nullopt;
    };
    if (!knows_function(rule.function)) return fail("the stand-in has no function \"" + rule.function + "\"");
    while (!parts.empty()) {
      std::string_view item = take(&parts, ':');
      const std::string pair(item);
      const std::string_view key = take(&item, '=');
      if (!set_key(&rule, key, item)) return fail("\"" + pair + "\" is not understood");
    }
    if (!rule.result && !rule.delay_ms && !rule.signal) return fail("one of result, delay_ms and signal is needed");
    rules.push_back(std::move(rule));
  }
  return rules;
}

Faults::Faults(std::vector<FaultRule> rules, pid_t pid, std::string_view role) {
  for (FaultRule& rule : rules) {
    if (rule.pid && *rule.pid != pid) continue;
    if (rule.role && *rule.role != role) continue;
    rules_.push_back({std::move(rule), std::make_unique<std::atomic<uint64_t>>(0)});
  }
}

std::optional<int32_t> Faults::strike(std::string_view function, int32_t device) const {
  std::optional<int32_t> result;
  for (const Counted& counted : rules_) {
    const FaultRule& rule = counted.rule;
    if (without_version(function) != rule.function) continue;
    if (rule.device && *rule.device != device) continue;
    const uint64_t call = counted.calls->fetch_add(1, std::memory_order_relaxed);
    if (call < rule.after || call - rule.after >= rule.count) continue;
    if (rule.delay_ms) std::this_thread::sleep_for(std::chrono::milliseconds(*rule.delay_ms));
    if (rule.signal) kill(getpid(), *rule.signal);
    if (rule.result && !result) result = rule.result;
  }
  return result;
}

std::optional<Faults> faults_from_environment(std::string_view prefix_of_other, std::string* problem) {
  const char* text = std::getenv("BATON_STANDIN_FAULTS");
  const char* role = std::getenv("BATON_STANDIN_ROLE");
  auto rules = parse_faults(
      text != nullptr ? text : "",
      [&](std::string_view name) { return name.starts_with(prefix_of_other) || find_newest_function(name) != nullptr; },
      problem);
  if (!rules) return std::nullopt;
  return Faults(std::move(*rules), getpid(), role != nullptr ? role : "");
}

}  // namespace baton::standin
