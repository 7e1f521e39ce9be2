#include "native/addon/channel.h"

#include <sys/socket.h>

#include <span>
#include <vector>

#include "native/addon/arguments.h"
#include "native/addon/errors.h"
#include "native/system/system_error.h"

namespace baton::addon {
namespace {

// Reads of one channel in one turn of the loop; then the others have theirs.
constexpr int kReadsPerTurn = 16;
constexpr int64_t kDefaultFlushMs = 1000;
// Below it a copy into memory of JavaScript's own is cheaper than memory of ours with a finalizer.
constexpr size_t kCopyBytes = 16 * 1024;
// Below it a copy of what waits is cheaper than a reference to it.
constexpr size_t kBorrowBytes = 64 * 1024;

struct Creation {
  Descriptor socket;
  Peer peer;
  ChannelLimits limits;
};

Creation& creation_of(const Napi::CallbackInfo& info) {
  if (info.Length() != 1 || !info[0].IsExternal()) {
    throw Napi::TypeError::New(info.Env(), "Channels come from listen() and connect()");
  }
  return *info[0].As<Napi::External<Creation>>().Data();
}

Napi::Value to_buffer(Napi::Env env, Frame& frame) {
  if (frame.payload_bytes <= kCopyBytes) {
    return Napi::Buffer<uint8_t>::Copy(env, frame.payload.get(), frame.payload_bytes);
  }
  uint8_t* const bytes = frame.payload.release();
  return Napi::Buffer<uint8_t>::New(env, bytes, frame.payload_bytes,
                                    [](Napi::Env, uint8_t* memory) { delete[] memory; });
}

std::span<const uint8_t> bytes_argument(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw to_javascript(value.Env(), bad_argument("payload", "a Uint8Array or Buffer", describe(value)));
  }
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

// One Uint8Array, which is the caller's again at once, or several, which must stay as they are.
std::vector<FramePiece> payload_argument(const Napi::Value& value) {
  if (!value.IsArray()) return {FramePiece{.bytes = bytes_argument(value), .owner = nullptr}};
  const auto array = value.As<Napi::Array>();
  std::vector<FramePiece> pieces(array.Length());
  for (uint32_t i = 0; i < pieces.size(); ++i) {
    const Napi::Value piece = array.Get(i);
    pieces[i].bytes = bytes_argument(piece);
    if (pieces[i].bytes.size() < kBorrowBytes) continue;
    pieces[i].owner = std::make_shared<Napi::ObjectReference>(Napi::Persistent(piece.As<Napi::Object>()));
  }
  return pieces;
}

std::vector<int> descriptors_argument(const Napi::Value& value) {
  if (value.IsUndefined()) return {};
  if (!value.IsArray()) {
    throw to_javascript(value.Env(), bad_argument("descriptors", "an array of numbers", describe(value)));
  }
  const auto array = value.As<Napi::Array>();
  std::vector<int> descriptors(array.Length());
  for (uint32_t i = 0; i < descriptors.size(); ++i) {
    descriptors[i] = static_cast<int>(integer_argument(array.Get(i), "descriptors", 0, INT32_MAX));
  }
  return descriptors;
}

}  // namespace

ChannelLimits ChannelLimits::from(const Napi::Value& options) {
  const ChannelLimits defaults;
  return ChannelLimits{
      .max_payload_bytes = static_cast<uint64_t>(
          integer_option(options, "maxPayloadBytes", 0, UINT32_MAX, static_cast<int64_t>(defaults.max_payload_bytes))),
      .max_queued_bytes = static_cast<uint64_t>(integer_option(options, "maxQueuedBytes", 0, kMaxSafeInteger,
                                                               static_cast<int64_t>(defaults.max_queued_bytes)))};
}

void Channel::define(Environment& environment) {
  environment.channel_class = Napi::Persistent(
      DefineClass(environment.env(), "Channel",
                  {
                      InstanceAccessor<&Channel::peer>("peer"),
                      InstanceAccessor<&Channel::queued_bytes>("queuedBytes"),
                      InstanceAccessor<&Channel::closed>("closed"),
                      InstanceAccessor<&Channel::get_callback<&Channel::on_frame_>,
                                       &Channel::set_callback_property<&Channel::on_frame_>>("onFrame"),
                      InstanceAccessor<&Channel::get_callback<&Channel::on_close_>,
                                       &Channel::set_callback_property<&Channel::on_close_>>("onClose"),
                      InstanceAccessor<&Channel::get_callback<&Channel::on_drain_>,
                                       &Channel::set_callback_property<&Channel::on_drain_>>("onDrain"),
                      InstanceMethod<&Channel::send>("send"),
                      InstanceMethod<&Channel::close>("close"),
                  }));
}

Napi::Object Channel::create(Environment& environment, Descriptor socket, const Peer& peer, ChannelLimits limits) {
  Creation creation{.socket = std::move(socket), .peer = peer, .limits = limits};
  return environment.channel_class.New({Napi::External<Creation>::New(environment.env(), &creation)});
}

Channel::Channel(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Channel>(info),
      state_of_environment_(Environment::of(info.Env()).shared_from_this()),
      socket_(std::move(creation_of(info).socket)),
      peer_(creation_of(info).peer),
      reader_(creation_of(info).limits.max_payload_bytes),
      writer_(creation_of(info).limits.max_queued_bytes),
      poll_(*state_of_environment_, socket_.get(), [this](int, int events) { on_ready(events); }) {
  state_of_environment_->add(this);
  // Alive as long as its connection, whether or not JavaScript holds it.
  Ref();
  update_events();
}

Channel::~Channel() {
  state_of_environment_->remove(this);
}

Napi::Value Channel::peer(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("pid", peer_.pid);
  result.Set("uid", peer_.uid);
  result.Set("gid", peer_.gid);
  return result;
}

Napi::Value Channel::queued_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(writer_.queued_bytes()));
}

Napi::Value Channel::closed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), state_ != State::kOpen);
}

template <Napi::FunctionReference Channel::* callback>
Napi::Value Channel::get_callback(const Napi::CallbackInfo& info) {
  return (this->*callback).IsEmpty() ? info.Env().Null() : (this->*callback).Value();
}

template <Napi::FunctionReference Channel::* callback>
void Channel::set_callback_property(const Napi::CallbackInfo&, const Napi::Value& value) {
  set_callback(this->*callback, value, "callback");
}

void Channel::send(const Napi::CallbackInfo& info) {
  const std::vector<int> descriptors = descriptors_argument(info[1]);
  const std::vector<FramePiece> payload = payload_argument(info[0]);
  if (state_ != State::kOpen) {
    throw to_javascript(info.Env(), Error{.code = "CHANNEL_CLOSED",
                                          .message = "The connection is closed.",
                                          .expected = "an open connection",
                                          .found = "one that this side or the peer has closed",
                                          .action = "",
                                          .driver_result = {}});
  }
  check(info.Env(), writer_.send(socket_.get(), payload, descriptors));
  update_events();
}

void Channel::close(const Napi::CallbackInfo& info) {
  const int64_t flush_ms =
      info[0].IsUndefined() ? kDefaultFlushMs : integer_argument(info[0], "flushMs", 0, int64_t{1} << 31);
  if (state_ != State::kOpen) return;
  writer_.flush(socket_.get());
  if (writer_.empty() || flush_ms == 0) return shut();
  state_ = State::kFlushing;
  flush_timer_ = std::make_unique<Timer>(*state_of_environment_, [this] { shut(); });
  flush_timer_->start(static_cast<uint64_t>(flush_ms));
  update_events();
}

void Channel::on_ready(int events) {
  if (!writer_.empty() && (events & kWritable) != 0) {
    writer_.flush(socket_.get());
    if (writer_.empty()) drained();
  }
  if (state_ == State::kFlushing) {
    if (writer_.empty()) shut();
    return;
  }
  // Whatever the events say: what has ended or failed shows when it is read.
  if (state_ == State::kOpen) read();
  if (state_ == State::kOpen) {
    update_events();
    // libuv stops polling a socket that has an error pending; a turn later the rest is read.
    if (events == 0) poll_.again();
  }
}

void Channel::read() {
  for (int i = 0; i < kReadsPerTurn; ++i) {
    const auto outcome = reader_.read_from(socket_.get());
    deliver();
    if (state_ != State::kOpen) return;
    if (!outcome) return finish(&outcome.error());
    if (*outcome == FrameReader::Outcome::kEnd) return finish(nullptr);
    // Should there be more, the loop's poll tells it again: it looks at what is there, not at what has changed.
    if (*outcome == FrameReader::Outcome::kPause) return;
    if (*outcome == FrameReader::Outcome::kBlocked) {
      if (const int failure = writer_.failure(); failure != 0) {
        const Error lost{.code = "CONNECTION_LOST",
                         .message = "The peer takes nothing any more.",
                         .expected = "a peer that reads",
                         .found = errno_name(failure),
                         .action = "See what the peer said last.",
                         .driver_result = {}};
        return finish(&lost);
      }
      return;
    }
  }
}

void Channel::deliver() {
  const Napi::Env env = Env();
  while (state_ == State::kOpen) {
    auto frame = reader_.take();
    if (!frame) return;
    // Nobody listens: the descriptors close with the frame.
    if (on_frame_.IsEmpty()) continue;
    const Napi::HandleScope scope(env);
    const Napi::Array descriptors = Napi::Array::New(env, frame->descriptors.size());
    for (uint32_t i = 0; i < frame->descriptors.size(); ++i) {
      descriptors.Set(i, Napi::Number::New(env, frame->descriptors[i].get()));
    }
    const Napi::Value payload = to_buffer(env, *frame);
    // From here on they are the receiver's.
    for (Descriptor& descriptor : frame->descriptors)
      descriptor.release();
    state_of_environment_->call(on_frame_, {payload, descriptors});
  }
}

void Channel::drained() {
  if (state_ == State::kOpen) state_of_environment_->call(on_drain_, {});
}

void Channel::update_events() {
  int events = state_ == State::kOpen ? kReadable : 0;
  // After a failed send too: the next turn finds out how the connection ended.
  if (!writer_.empty() || writer_.failure() != 0) events |= kWritable;
  poll_.set_events(events);
}

void Channel::finish(const Error* error) {
  const Napi::Env env = Env();
  const Napi::FunctionReference on_close = std::move(on_close_);
  shut();
  state_of_environment_->call(on_close, {error != nullptr ? to_javascript(env, *error).Value() : env.Null()});
}

// Also when the environment ends: no JavaScript here.
void Channel::close_now() noexcept {
  state_ = State::kClosed;
  poll_.close();
  if (flush_timer_) flush_timer_->close();
  // What the peer has sent and nobody has read would make its end of the connection fail with ECONNRESET.
  uint8_t unread[4096];
  for (int i = 0; i < 256 && ::recv(socket_.get(), unread, sizeof(unread), MSG_DONTWAIT) > 0; ++i) {
  }
  socket_.reset();
  // Now, not when the garbage collector comes by: a descriptor may hold a GPU's memory.
  reader_.clear();
  writer_.clear();
}

void Channel::shut() noexcept {
  if (state_ == State::kClosed) return;
  close_now();
  state_of_environment_->remove(this);
  on_frame_.Reset();
  on_close_.Reset();
  on_drain_.Reset();
  Unref();
}

}  // namespace baton::addon
