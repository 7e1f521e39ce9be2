// The error and result types of the native core. Nothing in the core throws across a module boundary: a function
// that can fail returns Status or Result<T>, and the C ABI and the addon turn the Error into their own form.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace baton {

// What went wrong, for a person and for a program. `code` is stable: UPPER_SNAKE, never reworded, what programs
// branch on. The texts are for people: what was expected, what was found, and what to do about it.
struct Error {
  std::string code;
  std::string message;
  std::string expected;
  std::string found;
  std::string action;
  // The CUresult or nvmlReturn_t behind the error, when a driver call failed.
  std::optional<int32_t> driver_result;
};

// {"code": "...", "message": "...", "expected": "...", "found": "...", "action": "..."}; always valid JSON.
std::string to_json(const Error& error);

// Appends `text` in quotes, escaped; bytes that are not UTF-8 become U+FFFD.
void append_json_string(std::string& json, std::string_view text);

// A value or an Error. Look before you take: value() and error() of the wrong kind abort.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : content_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const noexcept { return content_.index() == 0; }
  explicit operator bool() const noexcept { return ok(); }

  T& value() & { return *checked<0>(); }
  const T& value() const& { return *checked<0>(); }
  T&& value() && { return std::move(*checked<0>()); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return checked<0>(); }
  const T* operator->() const { return checked<0>(); }

  const Error& error() const& { return *checked<1>(); }
  Error&& error() && { return std::move(*checked<1>()); }

 private:
  template <size_t I>
  auto* checked() {
    auto* content = std::get_if<I>(&content_);
    if (content == nullptr) __builtin_trap();
    return content;
  }
  template <size_t I>
  const auto* checked() const {
    const auto* content = std::get_if<I>(&content_);
    if (content == nullptr) __builtin_trap();
    return content;
  }

  std::variant<T, Error> content_;
};

// Success, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }

  const Error& error() const& {
    if (ok()) __builtin_trap();
    return *error_;
  }
  Error&& error() && {
    if (ok()) __builtin_trap();
    return std::move(*error_);
  }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace baton

// Returns the error of `expression` (a Status or Result) from the enclosing function, if there is one.
#define BATON_TRY(expression)                                                                                \
  do {                                                                                                       \
    if (auto baton_try_status = (expression); !baton_try_status) return std::move(baton_try_status).error(); \
  } while (false)

#define BATON_CONCAT_INNER(a, b) a##b
#define BATON_CONCAT(a, b) BATON_CONCAT_INNER(a, b)

// BATON_ASSIGN(auto x, f()): x becomes the value of the Result, or its error is returned.
#define BATON_ASSIGN(target, expression) BATON_ASSIGN_INNER(BATON_CONCAT(baton_result_, __LINE__), target, expression)
#define BATON_ASSIGN_INNER(result, target, expression) \
  auto result = (expression);                          \
  if (!result) return std::move(result).error();       \
  target = std::move(result).value()
