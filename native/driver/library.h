// Opening a driver library and looking its functions up. Shared by the tables of libcuda and libnvidia-ml.
#pragma once

#include <string>

#include "native/driver/driver_function.h"
#include "native/driver/error.h"

namespace baton {

struct OpenedLibrary {
  void* handle = nullptr;
  std::string path;  // of the file that the loader took
};

// Opens `path`; when that is empty the path in the environment variable `variable`; else `soname`.
// Error DRIVER_NOT_FOUND says what was tried and what the loader answered.
Result<OpenedLibrary> open_library(const std::string& path, const char* variable, const char* soname);

// The first of the comma-separated `names` that the library has, kept as long as the process lives, or nullptr.
// *pointer is its address.
const char* find_symbol(void* handle, const char* names, void** pointer);

// Looks one function of a table up.
template <class Signature>
void bind_function(DriverFunction<Signature>& function, const DriverLibrary* library, void* handle, const char* names) {
  void* pointer = nullptr;
  const char* found = find_symbol(handle, names, &pointer);
  function.bind(library, names, found, pointer);
}

}  // namespace baton
