// What the stand-in libraries show to the loader, and how they talk to a person.
#pragma once

#include <string>

#define STANDIN_EXPORT extern "C" __attribute__((visibility("default")))

namespace baton::standin {

// Says something on stderr that a return code cannot: "baton stand-in GPU: …".
void complain(const std::string& text);

}  // namespace baton::standin

// The marker by which Baton, and anybody else, knows that these GPUs are not real.
STANDIN_EXPORT const char* batonStandinVersion();
