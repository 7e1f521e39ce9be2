// The Sampler of src/native.ts.
#pragma once

#include <memory>

#include "native/addon/environment.h"
#include "native/monitor/sampler.h"

namespace baton::addon {

class SamplerObject : public Napi::ObjectWrap<SamplerObject>, public Resource {
 public:
  static void define(Environment& environment);
  // startSampler(options): a promise.
  static Napi::Value start(const Napi::CallbackInfo& info);

  explicit SamplerObject(const Napi::CallbackInfo& info);
  ~SamplerObject() override;
  void close_now() noexcept override;

  // What the start makes off the event loop.
  struct Started {
    std::shared_ptr<const nvml::Nvml> nvml;
    std::unique_ptr<monitor::Sampler> sampler;
  };

 private:
  Napi::Value simulated(const Napi::CallbackInfo& info);
  Napi::Value device_count(const Napi::CallbackInfo& info);
  Napi::Value latest(const Napi::CallbackInfo& info);
  Napi::Value peaks(const Napi::CallbackInfo& info);
  void reset_peaks(const Napi::CallbackInfo& info);
  Napi::Value drain(const Napi::CallbackInfo& info);
  Napi::Value cost(const Napi::CallbackInfo& info);
  void stop(const Napi::CallbackInfo& info);

  const std::shared_ptr<Environment> state_of_environment_;
  Started started_;
};

}  // namespace baton::addon
