#include "native/addon/nvml.h"

#include "native/addon/arguments.h"
#include "native/addon/errors.h"
#include "native/addon/task.h"

namespace baton::addon {
namespace {

using Library = std::shared_ptr<const nvml::Nvml>;

Napi::Value bytes_or_null(Napi::Env env, const std::optional<uint64_t>& bytes) {
  if (!bytes) return env.Null();
  return Napi::Number::New(env, static_cast<double>(*bytes));
}

}  // namespace

Napi::Value to_javascript(Napi::Env env, const nvml::DeviceMemory& memory) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("totalBytes", static_cast<double>(memory.total_bytes));
  result.Set("usedBytes", static_cast<double>(memory.used_bytes));
  result.Set("freeBytes", static_cast<double>(memory.free_bytes));
  result.Set("reservedBytes", bytes_or_null(env, memory.reserved_bytes));
  return result;
}

Napi::Value to_javascript(Napi::Env env, const std::vector<nvml::ProcessMemory>& processes) {
  Napi::Array result = Napi::Array::New(env, processes.size());
  for (uint32_t i = 0; i < processes.size(); ++i) {
    Napi::Object process = Napi::Object::New(env);
    process.Set("pid", processes[i].pid);
    process.Set("usedBytes", bytes_or_null(env, processes[i].used_bytes));
    result.Set(i, process);
  }
  return result;
}

void NvmlObject::define(Environment& environment) {
  environment.nvml_class =
      Napi::Persistent(DefineClass(environment.env(), "Nvml",
                                   {
                                       InstanceAccessor<&NvmlObject::simulated>("simulated"),
                                       InstanceAccessor<&NvmlObject::path>("path"),
                                       InstanceAccessor<&NvmlObject::driver_version>("driverVersion"),
                                       InstanceAccessor<&NvmlObject::device_count>("deviceCount"),
                                       InstanceMethod<&NvmlObject::memory>("memory"),
                                       InstanceMethod<&NvmlObject::processes>("processes"),
                                       InstanceMethod<&NvmlObject::uuid>("uuid"),
                                       InstanceMethod<&NvmlObject::name>("name"),
                                       InstanceMethod<&NvmlObject::close>("close"),
                                   }));
}

Napi::Value NvmlObject::open(const Napi::CallbackInfo& info) {
  const std::string path = info[0].IsUndefined() ? std::string() : string_argument(info[0], "libraryPath");
  return Task<Library>::start(
      info.Env(),
      [path]() -> Result<Library> {
        BATON_ASSIGN(auto opened, nvml::Nvml::open(path));
        return Library(std::move(opened));
      },
      [](Napi::Env env, Library library) -> Napi::Value {
        return Environment::of(env).nvml_class.New({Napi::External<Library>::New(env, &library)});
      });
}

NvmlObject::NvmlObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NvmlObject>(info) {
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use openNvml()");
  nvml_ = *info[0].As<Napi::External<Library>>().Data();
}

const nvml::Nvml& NvmlObject::library(Napi::Env env) const {
  if (!nvml_) {
    throw to_javascript(env, Error{.code = "NVML_CLOSED",
                                   .message = "NVML was closed.",
                                   .expected = "an open library",
                                   .found = "one after close()",
                                   .action = "",
                                   .driver_result = {}});
  }
  return *nvml_;
}

uint32_t NvmlObject::device(const Napi::CallbackInfo& info) const {
  const int64_t count = library(info.Env()).device_count();
  return static_cast<uint32_t>(integer_argument(info[0], "index", 0, count - 1));
}

Napi::Value NvmlObject::simulated(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), library(info.Env()).simulated());
}

Napi::Value NvmlObject::path(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), library(info.Env()).path());
}

Napi::Value NvmlObject::driver_version(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), library(info.Env()).driver_version());
}

Napi::Value NvmlObject::device_count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), library(info.Env()).device_count());
}

Napi::Value NvmlObject::memory(const Napi::CallbackInfo& info) {
  const uint32_t index = device(info);
  return to_javascript(info.Env(), check(info.Env(), nvml_->memory(index)));
}

Napi::Value NvmlObject::processes(const Napi::CallbackInfo& info) {
  using List = std::vector<nvml::ProcessMemory>;
  return Task<List>::start(
      info.Env(), [library = nvml_, index = device(info)] { return library->processes(index); },
      [](Napi::Env env, const List& list) { return to_javascript(env, list); });
}

Napi::Value NvmlObject::uuid(const Napi::CallbackInfo& info) {
  const uint32_t index = device(info);
  return Napi::String::New(info.Env(), check(info.Env(), nvml_->uuid(index)));
}

Napi::Value NvmlObject::name(const Napi::CallbackInfo& info) {
  const uint32_t index = device(info);
  return Napi::String::New(info.Env(), check(info.Env(), nvml_->name(index)));
}

void NvmlObject::close(const Napi::CallbackInfo&) {
  nvml_.reset();
}

}  // namespace baton::addon
