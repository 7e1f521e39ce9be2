// What the addon keeps for one JavaScript environment (the main thread or a worker).
#pragma once

#include <memory>
#include <unordered_set>

#include "native/addon/libuv.h"
#include "native/addon/napi_setup.h"

namespace baton::addon {

// Something with handles on the event loop that must be closed before the environment ends.
class Resource {
 public:
  // Closes at once, without calling JavaScript.
  virtual void close_now() noexcept = 0;

 protected:
  ~Resource() = default;
};

// Lifetime: objects and handles hold it by shared_ptr, because the environment's instance data may go before them.
class Environment : public std::enable_shared_from_this<Environment> {
 public:
  static void attach(Napi::Env env);
  static Environment& of(Napi::Env env);

  explicit Environment(Napi::Env env);

  Napi::Env env() const { return env_; }
  uv_loop_s* loop() const { return loop_; }
  bool ending() const { return ending_; }

  void add(Resource* resource) { resources_.insert(resource); }
  void remove(Resource* resource) { resources_.erase(resource); }
  void handle_opened() { ++open_handles_; }
  void handle_closed();

  // Calls back from the event loop: with microtasks, and with what it throws as an uncaught exception. Nothing
  // happens while the environment ends.
  void call(const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments);

  // Runs a callback of libuv, to which no exception may come: what is thrown is an uncaught exception of JavaScript.
  template <class Work>
  void guard(const Work& work) noexcept {
    const Napi::HandleScope scope(env_);
    try {
      work();
    } catch (const Napi::Error& error) {
      report(error);
    }
  }

  // JavaScript's BatonError; empty until initialize().
  Napi::FunctionReference error_class;
  Napi::FunctionReference channel_class;
  Napi::FunctionReference listener_class;
  Napi::FunctionReference pidfd_class;
  Napi::FunctionReference nvml_class;
  Napi::FunctionReference sampler_class;

 private:
  void report(const Napi::Error& error) noexcept;
  static void end(napi_async_cleanup_hook_handle hook, void* data);

  const Napi::Env env_;
  uv_loop_s* loop_ = nullptr;
  std::unique_ptr<Napi::AsyncContext> async_context_;
  napi_async_cleanup_hook_handle cleanup_hook_ = nullptr;
  std::unordered_set<Resource*> resources_;
  size_t open_handles_ = 0;
  bool ending_ = false;
};

}  // namespace baton::addon
