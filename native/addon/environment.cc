#include "native/addon/environment.h"

namespace baton::addon {
namespace {

struct InstanceData {
  std::shared_ptr<Environment> environment;
};

}  // namespace

void Environment::attach(Napi::Env env) {
  env.SetInstanceData(new InstanceData{std::make_shared<Environment>(env)});
}

Environment& Environment::of(Napi::Env env) {
  return *env.GetInstanceData<InstanceData>()->environment;
}

Environment::Environment(Napi::Env env) : env_(env) {
  NAPI_THROW_IF_FAILED_VOID(env, napi_get_uv_event_loop(env, &loop_));
  async_context_ = std::make_unique<Napi::AsyncContext>(env, "baton");
  NAPI_THROW_IF_FAILED_VOID(env, napi_add_async_cleanup_hook(env, &Environment::end, this, &cleanup_hook_));
}

void Environment::end(napi_async_cleanup_hook_handle, void* data) {
  const auto self = static_cast<Environment*>(data)->shared_from_this();
  self->ending_ = true;
  // close_now takes the resource out of the set.
  while (!self->resources_.empty()) {
    Resource* resource = *self->resources_.begin();
    self->resources_.erase(self->resources_.begin());
    resource->close_now();
  }
  // While references can still be deleted: instances may outlive the environment's own data.
  self->async_context_.reset();
  for (auto* reference : {&self->error_class, &self->channel_class, &self->listener_class, &self->pidfd_class,
                          &self->nvml_class, &self->sampler_class}) {
    reference->Reset();
  }
  // libuv closes a handle in a later turn of the loop; the loop may only go after the last one.
  ++self->open_handles_;
  self->handle_closed();
}

void Environment::handle_closed() {
  --open_handles_;
  if (ending_ && open_handles_ == 0 && cleanup_hook_ != nullptr) {
    napi_remove_async_cleanup_hook(std::exchange(cleanup_hook_, nullptr));
  }
}

void Environment::call(const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments) {
  if (ending_ || function.IsEmpty()) return;
  guard([&] { function.Value().MakeCallback(env_.Global(), arguments, *async_context_); });
}

void Environment::report(const Napi::Error& error) noexcept {
  // A worker that is being terminated fails every call, and nobody is left to be told.
  bool terminating = ending_ || error.IsEmpty();
  try {
    if (!terminating) napi_fatal_exception(env_, error.Value());
  } catch (const Napi::Error&) {
    terminating = true;
  }
}

}  // namespace baton::addon
