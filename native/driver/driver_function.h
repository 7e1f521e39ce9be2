// One function of a driver library that may or may not be there. Calling it turns what the driver says into a
// Status; a function that the driver lacks is an error of that call alone, never of loading.
#pragma once

#include <cstdint>
#include <string>

#include "native/driver/error.h"

namespace baton {

// What an error has to say about the library that a function was looked for in.
struct DriverLibrary {
  std::string path;                        // what was opened
  std::string driver_version = "unknown";  // "13000", "580.95.05"
  // Builds the error of a call: CUDA and NVML differ in names of results and in advice.
  Error (*call_failed)(const DriverLibrary& library, const char* function, int32_t result) = nullptr;
};

// `names` is the comma-separated list that was looked for, newest first.
Error missing_function_error(const DriverLibrary& library, const char* names);

template <class Signature>
class DriverFunction;

template <class R, class... Args>
class DriverFunction<R(Args...)> {
 public:
  using Pointer = R (*)(Args...);

  // True when the driver has it.
  explicit operator bool() const noexcept { return pointer_ != nullptr; }

  // Calls it; any result but success, and a missing function, is an Error.
  Status operator()(Args... args) const {
    if (pointer_ == nullptr) return missing_function_error(*library_, names_);
    const R result = pointer_(args...);
    if (result == R{}) return {};
    return library_->call_failed(*library_, found_, static_cast<int32_t>(result));
  }

  // The result as the driver gives it, for results that are answers (not ready, out of memory).
  // Only where the function is known to be there.
  R raw(Args... args) const { return pointer_(args...); }

  // Error when the driver lacks it.
  Status available() const {
    if (pointer_ == nullptr) return missing_function_error(*library_, names_);
    return {};
  }

  // The versioned name that was found, or nullptr.
  const char* found() const noexcept { return found_; }

  // Turns a result that raw() gave into this function's error.
  Error error_of(R result) const { return library_->call_failed(*library_, found_, static_cast<int32_t>(result)); }

  void bind(const DriverLibrary* library, const char* names, const char* found, void* pointer) noexcept {
    library_ = library;
    names_ = names;
    found_ = found;
    pointer_ = reinterpret_cast<Pointer>(pointer);
  }

 private:
  Pointer pointer_ = nullptr;
  const DriverLibrary* library_ = nullptr;
  const char* names_ = "";
  const char* found_ = nullptr;
};

}  // namespace baton
