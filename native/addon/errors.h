// From the core's errors to JavaScript's BatonError.
#pragma once

#include <string>

#include "native/addon/napi_setup.h"
#include "native/driver/error.h"

namespace baton::addon {

// An instance of the class that JavaScript gave to initialize(), made here so that its stack shows the caller.
Napi::Error to_javascript(Napi::Env env, const Error& error);

// Throws unless the result is good, and gives its value.
template <class T>
T check(Napi::Env env, Result<T> result) {
  if (!result) throw to_javascript(env, result.error());
  return std::move(result).value();
}
inline void check(Napi::Env env, const Status& status) {
  if (!status) throw to_javascript(env, status.error());
}

Error bad_argument(const std::string& name, const std::string& expected, const std::string& found);

}  // namespace baton::addon
