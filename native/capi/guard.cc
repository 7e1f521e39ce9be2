#include "native/capi/guard.h"

namespace baton::capi {
namespace {

thread_local std::string last_error;
thread_local bool out_of_host_memory = false;
constexpr char kOutOfHostMemory[] =
    "{\"code\":\"OUT_OF_HOST_MEMORY\",\"message\":\"There was no memory to say what went wrong.\",\"expected\":\"\","
    "\"found\":\"\",\"action\":\"Free host memory.\"}";

}  // namespace

void remember(const Error& error) noexcept {
  try {
    last_error = to_json(error);
    out_of_host_memory = false;
  } catch (...) {
    out_of_host_memory = true;
  }
}

Error internal_error(const char* what) {
  return Error{.code = "INTERNAL",
               .message = std::string("Baton's native library failed: ") + what,
               .expected = "no exception",
               .found = what,
               .action = "Report this as a bug.",
               .driver_result = std::nullopt};
}

Status required(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (pointer != nullptr) continue;
    return Error{.code = "INVALID_ARGUMENT",
                 .message = "A pointer that a function needs is null.",
                 .expected = "an address",
                 .found = "null",
                 .action = "Correct the argument.",
                 .driver_result = std::nullopt};
  }
  return {};
}

}  // namespace baton::capi

const char* baton_last_error(void) {
  using namespace baton::capi;
  return out_of_host_memory ? kOutOfHostMemory : last_error.c_str();
}

const char* baton_version(void) {
  return BATON_VERSION;
}
