#include "native/addon/errors.h"

#include "native/addon/environment.h"

namespace baton::addon {

Napi::Error to_javascript(Napi::Env env, const Error& error) {
  Napi::Object fields = Napi::Object::New(env);
  fields.Set("code", error.code);
  fields.Set("message", error.message);
  fields.Set("expected", error.expected);
  fields.Set("found", error.found);
  fields.Set("action", error.action);
  const Napi::FunctionReference& error_class = Environment::of(env).error_class;
  if (error_class.IsEmpty()) {
    Napi::Error plain = Napi::Error::New(env, error.message);
    plain.Value().Set("code", error.code);
    return plain;
  }
  return Napi::Error(env, error_class.New({fields}));
}

Error bad_argument(const std::string& name, const std::string& expected, const std::string& found) {
  return Error{.code = "BAD_ARGUMENT",
               .message = "Argument `" + name + "` is not valid.",
               .expected = expected,
               .found = found,
               .action = "",
               .driver_result = {}};
}

}  // namespace baton::addon
