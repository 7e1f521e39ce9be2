#include "native/addon/listener.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "native/addon/errors.h"

namespace baton::addon {
namespace {

// When no descriptor is left, the one that waits stays ready: looking again at once would burn a core.
constexpr uint64_t kRetryMs = 50;
constexpr int kConnectionsPerTurn = 16;

struct Creation {
  Descriptor socket;
  std::string path;
  ChannelLimits limits;
  Napi::Function on_connection;
};

Creation& creation_of(const Napi::CallbackInfo& info) {
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "use listen()");
  return *info[0].As<Napi::External<Creation>>().Data();
}

}  // namespace

void Listener::define(Environment& environment) {
  environment.listener_class = Napi::Persistent(DefineClass(environment.env(), "Listener",
                                                            {
                                                                InstanceAccessor<&Listener::path>("path"),
                                                                InstanceMethod<&Listener::close>("close"),
                                                                InstanceMethod<&Listener::unref>("unref"),
                                                            }));
}

Napi::Object Listener::create(Environment& environment, Descriptor socket, const std::string& path,
                              ChannelLimits limits, Napi::Function on_connection) {
  Creation creation{.socket = std::move(socket), .path = path, .limits = limits, .on_connection = on_connection};
  return environment.listener_class.New({Napi::External<Creation>::New(environment.env(), &creation)});
}

Listener::Listener(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Listener>(info),
      state_of_environment_(Environment::of(info.Env()).shared_from_this()),
      socket_(std::move(creation_of(info).socket)),
      path_(creation_of(info).path),
      limits_(creation_of(info).limits),
      on_connection_(Napi::Persistent(creation_of(info).on_connection)),
      poll_(*state_of_environment_, socket_.get(), [this](int, int) { accept(); }),
      retry_(*state_of_environment_, [this] { poll_.set_events(kReadable); }) {
  state_of_environment_->add(this);
  Ref();
  poll_.set_events(kReadable);
}

Listener::~Listener() {
  state_of_environment_->remove(this);
}

Napi::Value Listener::path(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), path_);
}

void Listener::unref(const Napi::CallbackInfo&) {
  poll_.unref();
  retry_.unref();
}

void Listener::accept() {
  for (int i = 0; i < kConnectionsPerTurn && socket_; ++i) {
    Descriptor socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN) {
        poll_.set_events(0);
        retry_.start(kRetryMs);
      }
      return;
    }
    const auto peer = peer_of(socket.get());
    // The mode of the socket keeps others out; this also holds when somebody has changed it.
    if (!peer || peer->uid != ::geteuid()) continue;
    const Napi::HandleScope scope(Env());
    const Napi::Object channel = Channel::create(*state_of_environment_, std::move(socket), *peer, limits_);
    state_of_environment_->call(on_connection_, {channel});
  }
}

void Listener::close_now() noexcept {
  poll_.close();
  retry_.close();
  if (socket_) ::unlink(path_.c_str());
  socket_.reset();
}

void Listener::close(const Napi::CallbackInfo&) {
  if (!socket_) return;
  close_now();
  state_of_environment_->remove(this);
  on_connection_.Reset();
  Unref();
}

}  // namespace baton::addon
