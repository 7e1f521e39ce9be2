// Texts as NVML gives them.
#pragma once

#include <cstring>
#include <string>

#include "native/driver/nvml_abi.h"

namespace baton::standin {

inline nvml::Return write_text(const std::string& text, char* out, unsigned length) {
  if (out == nullptr) return nvml::kInvalidArgument;
  if (text.size() + 1 > length) return nvml::kInsufficientSize;
  std::memcpy(out, text.c_str(), text.size() + 1);
  return nvml::kSuccess;
}

}  // namespace baton::standin
