// What every function of the C ABI does with errors: no exception leaves it, and the last error is the thread's.
#pragma once
#include <exception>
#include <string>
#include <utility>

#include "native/capi/baton.h"
#include "native/driver/error.h"

namespace baton::capi {

inline constexpr baton_status kFailed = -1;

// Keeps `error` as this thread's last one.
void remember(const Error& error) noexcept;

Error internal_error(const char* what);
// For arguments that must not be null.
Status required(std::initializer_list<const void*> pointers);

// Runs `body`, which returns Status.
template <typename Body>
baton_status guarded(Body&& body) noexcept {
  try {
    const Status status = std::forward<Body>(body)();
    if (status) return 0;
    remember(status.error());
  } catch (const std::exception& exception) {
    remember(internal_error(exception.what()));
  } catch (...) {
    remember(internal_error("an exception of an unknown kind"));
  }
  return kFailed;
}

}  // namespace baton::capi
