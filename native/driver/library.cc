#include "native/driver/library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <string_view>

namespace baton {
namespace {

std::string loaded_path(void* handle, const std::string& wanted) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name != nullptr && *map->l_name != '\0') {
    return map->l_name;
  }
  return wanted;
}

// Names live as long as the process, as the tables do.
const char* keep_name(std::string_view name) {
  static std::mutex mutex;
  static auto* const names = new std::set<std::string, std::less<>>;
  const std::lock_guard lock(mutex);
  return names->emplace(name).first->c_str();
}

}  // namespace

Result<OpenedLibrary> open_library(const std::string& path, const char* variable, const char* soname) {
  std::string wanted = path;
  std::string chosen_by = "the caller's path";
  if (wanted.empty()) {
    const char* from_environment = std::getenv(variable);
    if (from_environment != nullptr && *from_environment != '\0') {
      wanted = from_environment;
      chosen_by = variable;
    } else {
      wanted = soname;
      chosen_by = "the loader's search path";
    }
  }
  dlerror();
  void* handle = dlopen(wanted.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Error{.code = "DRIVER_NOT_FOUND",
                 .message = "The driver library " + wanted + " cannot be opened.",
                 .expected = wanted + " (chosen by " + chosen_by + ")",
                 .found = reason != nullptr ? reason : "no reason given by the loader",
                 .action = std::string("Install the NVIDIA driver, or name the library in ") + variable +
                           ", or run on the stand-in GPUs.",
                 .driver_result = std::nullopt};
  }
  return OpenedLibrary{.handle = handle, .path = loaded_path(handle, wanted)};
}

const char* find_symbol(void* handle, const char* names, void** pointer) {
  std::string_view rest = names;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const char* name = keep_name(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    *pointer = dlsym(handle, name);
    if (*pointer != nullptr) return name;
  }
  *pointer = nullptr;
  return nullptr;
}

Error missing_function_error(const DriverLibrary& library, const char* names) {
  const std::string_view all = names;
  const std::string newest(all.substr(0, all.find(',')));
  return Error{.code = "DRIVER_SYMBOL_MISSING",
               .message = "The driver library has no function " + newest + ".",
               .expected = all.find(',') == std::string_view::npos ? newest : "one of " + std::string(all),
               .found = "none of it in " + library.path + " (driver version " + library.driver_version + ")",
               .action = "Update the NVIDIA driver to one that has this function.",
               .driver_result = std::nullopt};
}

}  // namespace baton
