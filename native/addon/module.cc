// What baton.node exports; src/native.ts documents each.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

#include "native/addon/arguments.h"
#include "native/addon/channel.h"
#include "native/addon/checksums.h"
#include "native/addon/environment.h"
#include "native/addon/errors.h"
#include "native/addon/listener.h"
#include "native/addon/nvml.h"
#include "native/addon/pidfd.h"
#include "native/addon/sampler.h"
#include "native/system/processes.h"
#include "native/system/system_error.h"

namespace baton::addon {
namespace {

pid_t pid_argument(const Napi::CallbackInfo& info) {
  return static_cast<pid_t>(integer_argument(info[0], "pid", 1, kMaxPid));
}

int descriptor_argument(const Napi::CallbackInfo& info) {
  return static_cast<int>(integer_argument(info[0], "descriptor", 0, INT32_MAX));
}

Napi::Value to_object(Napi::Env env, const ProcessInfo& info) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("pid", info.pid);
  result.Set("ppid", info.ppid);
  result.Set("state", std::string(1, info.state));
  result.Set("ending", Napi::Boolean::New(env, info.ending));
  result.Set("startTime", Napi::BigInt::New(env, info.start_time));
  result.Set("command", info.command);
  return result;
}

// ---- sockets ---------------------------------------------------------------------------------------------

Napi::Value listen(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = string_argument(info[0], "path");
  const Napi::Function on_connection = function_argument(info[1], "onConnection");
  const ChannelLimits limits = ChannelLimits::from(info[2]);
  return Listener::create(Environment::of(env), check(env, listen_at(path)), path, limits, on_connection);
}

Napi::Value connect(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = string_argument(info[0], "path");
  const ChannelLimits limits = ChannelLimits::from(info[1]);
  Descriptor socket = check(env, connect_to(path));
  const Peer peer = check(env, peer_of(socket.get()));
  if (peer.uid != ::geteuid()) {
    throw to_javascript(env, Error{.code = "PEER_NOT_ALLOWED",
                                   .message = "Another user listens at " + path + ".",
                                   .expected = "user " + std::to_string(::geteuid()),
                                   .found = "user " + std::to_string(peer.uid),
                                   .action = "Use a folder of your own.",
                                   .driver_result = {}});
  }
  return Channel::create(Environment::of(env), std::move(socket), peer, limits);
}

// ---- processes -------------------------------------------------------------------------------------------

Napi::Value open_pidfd(const Napi::CallbackInfo& info) {
  const pid_t pid = pid_argument(info);
  return Pidfd::create(Environment::of(info.Env()), pid, check(info.Env(), open_process(pid)));
}

void become_subreaper(const Napi::CallbackInfo& info) {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) {
    throw to_javascript(info.Env(), system_error(errno, "become a child subreaper"));
  }
}

Napi::Value process_info(const Napi::CallbackInfo& info) {
  const auto found = read_process(pid_argument(info));
  return found ? to_object(info.Env(), *found) : info.Env().Null();
}

Napi::Value descendants(const Napi::CallbackInfo& info) {
  const auto below = descendants_of(pid_argument(info));
  Napi::Array result = Napi::Array::New(info.Env(), below.size());
  for (uint32_t i = 0; i < below.size(); ++i)
    result.Set(i, to_object(info.Env(), below[i]));
  return result;
}

Napi::Value reap(const Napi::CallbackInfo& info) {
  const pid_t pid = pid_argument(info);
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) != pid) return info.Env().Null();
  return Napi::Number::New(info.Env(), WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}

// ---- descriptors -----------------------------------------------------------------------------------------

Napi::Value memfd(const Napi::CallbackInfo& info) {
  const std::string name = string_argument(info[0], "name");
  const int64_t bytes = integer_argument(info[1], "bytes", 0, kMaxSafeInteger);
  // MFD_NOEXEC_SEAL, which kernels before 6.3 do not know: memory, never a program.
  constexpr unsigned kNoExecSeal = 8;
  Descriptor descriptor(::memfd_create(name.c_str(), MFD_CLOEXEC | kNoExecSeal));
  if (!descriptor && errno == EINVAL) descriptor = Descriptor(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!descriptor) throw to_javascript(info.Env(), system_error(errno, "make a memory file"));
  if (::ftruncate(descriptor.get(), bytes) != 0) {
    throw to_javascript(info.Env(), system_error(errno, "give a memory file " + std::to_string(bytes) + " bytes"));
  }
  return Napi::Number::New(info.Env(), descriptor.release());
}

void close_descriptor(const Napi::CallbackInfo& info) {
  const int descriptor = descriptor_argument(info);
  // Not repeated after EINTR: on Linux the descriptor is gone in any case.
  if (::close(descriptor) != 0 && errno != EINTR) {
    throw to_javascript(info.Env(), system_error(errno, "close descriptor " + std::to_string(descriptor)));
  }
}

Napi::Value duplicate(const Napi::CallbackInfo& info) {
  const int descriptor = descriptor_argument(info);
  Descriptor copy = Descriptor::duplicate(descriptor);
  if (!copy) throw to_javascript(info.Env(), system_error(errno, "duplicate descriptor " + std::to_string(descriptor)));
  return Napi::Number::New(info.Env(), copy.release());
}

// ---- clock -----------------------------------------------------------------------------------------------

Napi::Value monotonic_ns(const Napi::CallbackInfo& info) {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return Napi::BigInt::New(info.Env(),
                           static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec));
}

void initialize(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).error_class = Napi::Persistent(function_argument(info[0], "errorClass"));
}

Napi::Object exports_of(Napi::Env env, Napi::Object exports) {
  Environment::attach(env);
  Environment& environment = Environment::of(env);
  Channel::define(environment);
  Listener::define(environment);
  Pidfd::define(environment);
  NvmlObject::define(environment);
  SamplerObject::define(environment);

  const auto add = [&](const char* name, auto function) {
    exports.Set(name, Napi::Function::New(env, function, name));
  };
  exports.Set("version", BATON_VERSION);
  add("initialize", initialize);
  add("listen", listen);
  add("connect", connect);
  add("openPidfd", open_pidfd);
  add("becomeSubreaper", become_subreaper);
  add("processInfo", process_info);
  add("descendants", descendants);
  add("reap", reap);
  add("memfd", memfd);
  add("closeDescriptor", close_descriptor);
  add("duplicate", duplicate);
  add("openNvml", NvmlObject::open);
  add("startSampler", SamplerObject::start);
  add("indexChecksums", index_checksums);
  add("monotonicNs", monotonic_ns);
  return exports;
}

}  // namespace
}  // namespace baton::addon

static Napi::Object start(Napi::Env env, Napi::Object exports) {
  return baton::addon::exports_of(env, exports);
}
NODE_API_MODULE(baton, start)
