// What the probe says: one JSON object a line, written as soon as it is known. So a reader knows how far a probe came
// that hangs or crashes.
#pragma once
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "native/driver/error.h"

namespace baton::probe {

class Json {
 public:
  Json& add(std::string_view name, std::string_view text) {
    key(name);
    append_json_string(text_, text);
    return *this;
  }
  Json& add(std::string_view name, const char* text) { return add(name, std::string_view(text)); }
  // Integers and truth values; unknown is null.
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Json& add(std::string_view name, T value) {
    key(name);
    if constexpr (std::is_same_v<T, bool>) {
      text_ += value ? "true" : "false";
    } else {
      text_ += std::to_string(value);
    }
    return *this;
  }
  template <class T>
  Json& add(std::string_view name, const std::optional<T>& value) {
    return value ? add(name, *value) : raw(name, "null");
  }
  Json& add(std::string_view name, const Json& object) { return raw(name, object.text()); }
  Json& add(std::string_view name, const std::vector<Json>& objects) {
    std::string list = "[";
    for (const Json& object : objects)
      list += (list.size() > 1 ? ", " : "") + object.text();
    return raw(name, list + "]");
  }
  Json& add(std::string_view name, const Error& error) { return raw(name, to_json(error)); }

  std::string text() const { return text_ + "}"; }

 private:
  Json& raw(std::string_view name, const std::string& json) {
    key(name);
    text_ += json;
    return *this;
  }
  void key(std::string_view name) {
    if (text_.size() > 1) text_ += ", ";
    append_json_string(text_, name);
    text_ += ": ";
  }

  std::string text_ = "{";
};

inline void say(const Json& line) {
  std::printf("%s\n", line.text().c_str());
  std::fflush(stdout);
}

// What is tried now: the last of these lines is where a probe was when it ended too early.
inline void at(const std::string& what) {
  say(Json().add("at", what));
}

}  // namespace baton::probe
