// The Pidfd of src/native.ts.
#pragma once

#include <memory>

#include "native/addon/environment.h"
#include "native/addon/loop_handles.h"
#include "native/system/processes.h"

namespace baton::addon {

class Pidfd : public Napi::ObjectWrap<Pidfd>, public Resource {
 public:
  static void define(Environment& environment);
  static Napi::Object create(Environment& environment, pid_t pid, ProcessHandle handle);

  explicit Pidfd(const Napi::CallbackInfo& info);
  ~Pidfd() override;
  void close_now() noexcept override;

 private:
  Napi::Value pid(const Napi::CallbackInfo& info);
  Napi::Value start_time(const Napi::CallbackInfo& info);
  Napi::Value get_on_exit(const Napi::CallbackInfo& info);
  void set_on_exit(const Napi::CallbackInfo& info, const Napi::Value& value);
  Napi::Value signal(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);
  void unref(const Napi::CallbackInfo& info);
  void ended();

  const std::shared_ptr<Environment> state_of_environment_;
  const pid_t pid_;
  ProcessHandle handle_;
  Poll poll_;
  bool told_ = false;
  Napi::FunctionReference on_exit_;
};

}  // namespace baton::addon
