#include "native/addon/sampler.h"

#include <algorithm>

#include "native/addon/arguments.h"
#include "native/addon/errors.h"
#include "native/addon/nvml.h"
#include "native/addon/task.h"

namespace baton::addon {
namespace {

Napi::Object options_argument(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) {
    throw to_javascript(info.Env(), bad_argument("options", "an object", describe(info[0])));
  }
  return info[0].As<Napi::Object>();
}

}  // namespace

void SamplerObject::define(Environment& environment) {
  environment.sampler_class =
      Napi::Persistent(DefineClass(environment.env(), "Sampler",
                                   {
                                       InstanceAccessor<&SamplerObject::simulated>("simulated"),
                                       InstanceAccessor<&SamplerObject::device_count>("deviceCount"),
                                       InstanceMethod<&SamplerObject::latest>("latest"),
                                       InstanceMethod<&SamplerObject::peaks>("peaks"),
                                       InstanceMethod<&SamplerObject::reset_peaks>("resetPeaks"),
                                       InstanceMethod<&SamplerObject::drain>("drain"),
                                       InstanceMethod<&SamplerObject::cost>("cost"),
                                       InstanceMethod<&SamplerObject::stop>("stop"),
                                   }));
}

Napi::Value SamplerObject::start(const Napi::CallbackInfo& info) {
  const Napi::Object given = options_argument(info);
  monitor::SamplerOptions options;
  options.hz = number_argument(given.Get("hz"), "hz", 1, 1000);
  if (const Napi::Value value = given.Get("processHz"); !value.IsUndefined()) {
    options.process_hz = number_argument(value, "processHz", 0, 100);
  }
  options.capacity = static_cast<size_t>(
      integer_option(given, "capacity", 1, int64_t{1} << 24, static_cast<int64_t>(options.capacity)));
  const Napi::Value library = given.Get("libraryPath");
  const std::string path = library.IsUndefined() ? std::string() : string_argument(library, "libraryPath");
  // std::function wants what it holds to be copyable, so the result travels in a shared_ptr.
  using Shared = std::shared_ptr<Started>;
  return Task<Shared>::start(
      info.Env(),
      [path, options]() -> Result<Shared> {
        auto started = std::make_shared<Started>();
        BATON_ASSIGN(started->nvml, nvml::Nvml::open(path));
        started->sampler = std::make_unique<monitor::Sampler>(started->nvml, options);
        return started;
      },
      [](Napi::Env env, const Shared& started) -> Napi::Value {
        return Environment::of(env).sampler_class.New({Napi::External<Started>::New(env, started.get())});
      });
}

SamplerObject::SamplerObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<SamplerObject>(info), state_of_environment_(Environment::of(info.Env()).shared_from_this()) {
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use startSampler()");
  started_ = std::move(*info[0].As<Napi::External<Started>>().Data());
  state_of_environment_->add(this);
}

SamplerObject::~SamplerObject() {
  state_of_environment_->remove(this);
}

void SamplerObject::close_now() noexcept {
  started_.sampler->stop();
}

void SamplerObject::stop(const Napi::CallbackInfo&) {
  started_.sampler->stop();
}

Napi::Value SamplerObject::simulated(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), started_.nvml->simulated());
}

Napi::Value SamplerObject::device_count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), started_.nvml->device_count());
}

Napi::Value SamplerObject::latest(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const monitor::Snapshot snapshot = started_.sampler->latest();
  Napi::Array devices = Napi::Array::New(env, snapshot.devices.size());
  Napi::Array processes = Napi::Array::New(env, snapshot.processes.size());
  for (uint32_t i = 0; i < snapshot.devices.size(); ++i) {
    const auto& memory = snapshot.devices[i];
    const auto& list = snapshot.processes[i];
    devices.Set(i, memory ? to_javascript(env, *memory) : env.Null());
    processes.Set(i, list ? to_javascript(env, *list) : env.Null());
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("timeNs", Napi::BigInt::New(env, snapshot.time_ns));
  result.Set("devices", devices);
  result.Set("processes", processes);
  return result;
}

Napi::Value SamplerObject::peaks(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto peaks = started_.sampler->peaks();
  Napi::Array result = Napi::Array::New(env, peaks.size());
  for (uint32_t i = 0; i < peaks.size(); ++i) {
    if (!peaks[i]) {
      result.Set(i, env.Null());
      continue;
    }
    Napi::Object peak = Napi::Object::New(env);
    peak.Set("usedBytes", static_cast<double>(peaks[i]->used_bytes));
    peak.Set("timeNs", Napi::BigInt::New(env, peaks[i]->time_ns));
    result.Set(i, peak);
  }
  return result;
}

void SamplerObject::reset_peaks(const Napi::CallbackInfo&) {
  started_.sampler->reset_peaks();
}

Napi::Value SamplerObject::drain(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const monitor::Series series = started_.sampler->drain();
  auto times = Napi::BigUint64Array::New(env, series.times_ns.size());
  auto used = Napi::Float64Array::New(env, series.used_bytes.size());
  std::copy(series.times_ns.begin(), series.times_ns.end(), times.Data());
  std::copy(series.used_bytes.begin(), series.used_bytes.end(), used.Data());
  Napi::Object result = Napi::Object::New(env);
  result.Set("timesNs", times);
  result.Set("usedBytes", used);
  result.Set("deviceCount", started_.nvml->device_count());
  result.Set("dropped", static_cast<double>(series.dropped));
  return result;
}

Napi::Value SamplerObject::cost(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const monitor::Cost cost = started_.sampler->cost();
  Napi::Object result = Napi::Object::New(env);
  result.Set("samples", static_cast<double>(cost.samples));
  result.Set("late", static_cast<double>(cost.late));
  result.Set("cpuNs", Napi::BigInt::New(env, cost.cpu_ns));
  result.Set("wallNs", Napi::BigInt::New(env, cost.wall_ns));
  return result;
}

}  // namespace baton::addon
