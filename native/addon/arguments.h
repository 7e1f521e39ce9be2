// Arguments of JavaScript calls, checked. All throw BatonError BAD_ARGUMENT.
#pragma once

#include <cmath>
#include <string>

#include "native/addon/errors.h"
#include "native/addon/napi_setup.h"

namespace baton::addon {

// "a string", "undefined", …: what was given, without calling any JavaScript.
std::string describe(const Napi::Value& value);

// A whole number within [lowest, highest].
int64_t integer_argument(const Napi::Value& value, const char* name, int64_t lowest, int64_t highest);
double number_argument(const Napi::Value& value, const char* name, double lowest, double highest);
std::string string_argument(const Napi::Value& value, const char* name);
Napi::Function function_argument(const Napi::Value& value, const char* name);
// A callback property: a function, or null and undefined for none.
void set_callback(Napi::FunctionReference& callback, const Napi::Value& value, const char* name);

// Field of an options object; `otherwise` when the object or the field is undefined.
int64_t integer_option(const Napi::Value& options, const char* name, int64_t lowest, int64_t highest,
                       int64_t otherwise);

inline constexpr int64_t kMaxPid = 1 << 22;
inline constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

}  // namespace baton::addon
