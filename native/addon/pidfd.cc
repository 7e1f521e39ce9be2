#include "native/addon/pidfd.h"

#include "native/addon/arguments.h"
#include "native/addon/errors.h"

namespace baton::addon {
namespace {

struct Creation {
  pid_t pid;
  ProcessHandle handle;
};

Creation& creation_of(const Napi::CallbackInfo& info) {
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use openPidfd()");
  return *info[0].As<Napi::External<Creation>>().Data();
}

}  // namespace

void Pidfd::define(Environment& environment) {
  environment.pidfd_class =
      Napi::Persistent(DefineClass(environment.env(), "Pidfd",
                                   {
                                       InstanceAccessor<&Pidfd::pid>("pid"),
                                       InstanceAccessor<&Pidfd::start_time>("startTime"),
                                       InstanceAccessor<&Pidfd::get_on_exit, &Pidfd::set_on_exit>("onExit"),
                                       InstanceMethod<&Pidfd::signal>("signal"),
                                       InstanceMethod<&Pidfd::close>("close"),
                                       InstanceMethod<&Pidfd::unref>("unref"),
                                   }));
}

Napi::Object Pidfd::create(Environment& environment, pid_t pid, ProcessHandle handle) {
  Creation creation{.pid = pid, .handle = std::move(handle)};
  return environment.pidfd_class.New({Napi::External<Creation>::New(environment.env(), &creation)});
}

Pidfd::Pidfd(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Pidfd>(info),
      state_of_environment_(Environment::of(info.Env()).shared_from_this()),
      pid_(creation_of(info).pid),
      handle_(std::move(creation_of(info).handle)),
      poll_(*state_of_environment_, handle_.pidfd.get(), [this](int, int) { ended(); }) {
  state_of_environment_->add(this);
  Ref();
  poll_.set_events(kReadable);
}

Pidfd::~Pidfd() {
  state_of_environment_->remove(this);
}

Napi::Value Pidfd::pid(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), pid_);
}

Napi::Value Pidfd::start_time(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), handle_.start_time);
}

Napi::Value Pidfd::get_on_exit(const Napi::CallbackInfo& info) {
  return on_exit_.IsEmpty() ? info.Env().Null() : on_exit_.Value();
}

void Pidfd::set_on_exit(const Napi::CallbackInfo&, const Napi::Value& value) {
  set_callback(on_exit_, value, "onExit");
  // An end that nobody was told of is still there to be seen: the pidfd stays readable.
  if (handle_.pidfd && !told_ && !on_exit_.IsEmpty()) poll_.set_events(kReadable);
}

Napi::Value Pidfd::signal(const Napi::CallbackInfo& info) {
  const auto signal = static_cast<int>(integer_argument(info[0], "signal", 0, 64));
  if (!handle_.pidfd) return Napi::Boolean::New(info.Env(), false);
  return Napi::Boolean::New(info.Env(), check(info.Env(), signal_process(handle_.pidfd.get(), signal)));
}

void Pidfd::unref(const Napi::CallbackInfo&) {
  poll_.unref();
}

void Pidfd::ended() {
  poll_.set_events(0);
  if (on_exit_.IsEmpty()) return;
  told_ = true;
  const Napi::FunctionReference on_exit = std::move(on_exit_);
  state_of_environment_->call(on_exit, {});
}

void Pidfd::close_now() noexcept {
  poll_.close();
  handle_.pidfd.reset();
}

void Pidfd::close(const Napi::CallbackInfo&) {
  if (!handle_.pidfd) return;
  close_now();
  state_of_environment_->remove(this);
  on_exit_.Reset();
  Unref();
}

}  // namespace baton::addon
