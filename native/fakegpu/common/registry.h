// The functions that the stand-in's libcuda has, by name: for cuGetProcAddress and for the names in fault rules.
//
//   STANDIN_FUNCTION(cuMemRelease, AllocationHandle handle) {
//     STANDIN_ENTER(kNoDevice);
//     …
//   }
#pragma once

#include <string_view>

#include "native/fakegpu/common/export.h"

namespace baton::standin {

struct FunctionRegistration {
  FunctionRegistration(const char* name, void* address);
};

// By exact name; nullptr when there is none.
void* find_function(std::string_view name);
// The newest version of an unversioned name: cuMemGetInfo_v2 for cuMemGetInfo.
void* find_newest_function(std::string_view name);

}  // namespace baton::standin

// Defines an exported function and puts it on the list: STANDIN_DEFINE(Result, cuMemRelease, Handle handle) { … }
#define STANDIN_DEFINE(result, name, ...)                                                                \
  STANDIN_EXPORT result name(__VA_ARGS__);                                                               \
  namespace {                                                                                            \
  const baton::standin::FunctionRegistration name##_registration(#name, reinterpret_cast<void*>(&name)); \
  }                                                                                                      \
  result name(__VA_ARGS__)
