// Errors of system calls in the form of the core.
#pragma once

#include <string>

#include "native/driver/error.h"

namespace baton {

// "EMFILE"; "E123" for a number without a name.
std::string errno_name(int number);

// Code SYSTEM_<NAME>. `what` is what was being done: "open a pidfd".
Error system_error(int number, const std::string& what);

}  // namespace baton
