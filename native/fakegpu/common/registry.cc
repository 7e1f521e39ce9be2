#include "native/fakegpu/common/registry.h"

#include <map>
#include <string>

#include "native/fakegpu/common/faults.h"

namespace baton::standin {
namespace {

// Filled while the library is loaded, read afterwards; never destroyed, as calls may come while a process ends.
std::map<std::string, void*, std::less<>>& functions() {
  static auto* const map = new std::map<std::string, void*, std::less<>>;
  return *map;
}

}  // namespace

FunctionRegistration::FunctionRegistration(const char* name, void* address) {
  functions().emplace(name, address);
}

void* find_function(std::string_view name) {
  const auto found = functions().find(name);
  return found != functions().end() ? found->second : nullptr;
}

void* find_newest_function(std::string_view name) {
  void* newest = find_function(name);
  // In order: _v2 before _v3.
  for (auto next = functions().lower_bound(name); next != functions().end(); ++next) {
    if (!next->first.starts_with(name)) break;
    if (next->first != name && without_version(next->first) == name) newest = next->second;
  }
  return newest;
}

}  // namespace baton::standin
