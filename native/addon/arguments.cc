#include "native/addon/arguments.h"

namespace baton::addon {
namespace {

std::string text_of(double number) {
  std::string text = std::to_string(number);
  if (text.find('.') != std::string::npos) text.erase(text.find_last_not_of('0') + 1);
  if (!text.empty() && text.back() == '.') text.pop_back();
  return text;
}

std::string range(const char* what, double lowest, double highest) {
  return std::string(what) + " from " + text_of(lowest) + " to " + text_of(highest);
}

}  // namespace

std::string describe(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "a boolean";
    case napi_number:
      return text_of(value.As<Napi::Number>().DoubleValue());
    case napi_string:
      return "a string";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    default:
      return "an object";
  }
}

double number_argument(const Napi::Value& value, const char* name, double lowest, double highest) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(number >= lowest && number <= highest)) {
    throw to_javascript(value.Env(), bad_argument(name, range("a number", lowest, highest), describe(value)));
  }
  return number;
}

int64_t integer_argument(const Napi::Value& value, const char* name, int64_t lowest, int64_t highest) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  const auto low = static_cast<double>(lowest);
  const auto high = static_cast<double>(highest);
  if (!(number >= low && number <= high) || number != std::floor(number)) {
    throw to_javascript(value.Env(), bad_argument(name, range("a whole number", low, high), describe(value)));
  }
  return static_cast<int64_t>(number);
}

std::string string_argument(const Napi::Value& value, const char* name) {
  if (!value.IsString()) throw to_javascript(value.Env(), bad_argument(name, "a string", describe(value)));
  return value.As<Napi::String>().Utf8Value();
}

Napi::Function function_argument(const Napi::Value& value, const char* name) {
  if (!value.IsFunction()) throw to_javascript(value.Env(), bad_argument(name, "a function", describe(value)));
  return value.As<Napi::Function>();
}

void set_callback(Napi::FunctionReference& callback, const Napi::Value& value, const char* name) {
  if (value.IsNull() || value.IsUndefined()) {
    callback.Reset();
  } else {
    callback = Napi::Persistent(function_argument(value, name));
  }
}

int64_t integer_option(const Napi::Value& options, const char* name, int64_t lowest, int64_t highest,
                       int64_t otherwise) {
  if (options.IsUndefined()) return otherwise;
  if (!options.IsObject()) throw to_javascript(options.Env(), bad_argument("options", "an object", describe(options)));
  const Napi::Value value = options.As<Napi::Object>().Get(name);
  return value.IsUndefined() ? otherwise : integer_argument(value, name, lowest, highest);
}

}  // namespace baton::addon
