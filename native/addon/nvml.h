// The Nvml of src/native.ts.
#pragma once

#include <memory>

#include "native/addon/environment.h"
#include "native/driver/nvml.h"

namespace baton::addon {

// Shapes of src/native.ts.
Napi::Value to_javascript(Napi::Env env, const nvml::DeviceMemory& memory);
Napi::Value to_javascript(Napi::Env env, const std::vector<nvml::ProcessMemory>& processes);

class NvmlObject : public Napi::ObjectWrap<NvmlObject> {
 public:
  static void define(Environment& environment);
  // openNvml(libraryPath?): a promise.
  static Napi::Value open(const Napi::CallbackInfo& info);

  explicit NvmlObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value simulated(const Napi::CallbackInfo& info);
  Napi::Value path(const Napi::CallbackInfo& info);
  Napi::Value driver_version(const Napi::CallbackInfo& info);
  Napi::Value device_count(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value processes(const Napi::CallbackInfo& info);
  Napi::Value uuid(const Napi::CallbackInfo& info);
  Napi::Value name(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  const nvml::Nvml& library(Napi::Env env) const;
  uint32_t device(const Napi::CallbackInfo& info) const;

  std::shared_ptr<const nvml::Nvml> nvml_;  // empty: closed
};

}  // namespace baton::addon
