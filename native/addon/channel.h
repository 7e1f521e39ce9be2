// The Channel of src/native.ts: one connection of frames on the event loop's own poll.
#pragma once

#include <memory>

#include "native/addon/environment.h"
#include "native/addon/loop_handles.h"
#include "native/system/frame_reader.h"
#include "native/system/frame_writer.h"
#include "native/system/unix_socket.h"

namespace baton::addon {

struct ChannelLimits {
  uint64_t max_payload_bytes = uint64_t{1} << 30;
  uint64_t max_queued_bytes = uint64_t{1} << 30;

  static ChannelLimits from(const Napi::Value& options);
};

class Channel : public Napi::ObjectWrap<Channel>, public Resource {
 public:
  static void define(Environment& environment);
  static Napi::Object create(Environment& environment, Descriptor socket, const Peer& peer, ChannelLimits limits);

  explicit Channel(const Napi::CallbackInfo& info);
  ~Channel() override;
  void close_now() noexcept override;

 private:
  enum class State {
    kOpen,
    kFlushing,  // close() was called, the queue goes out
    kClosed,
  };

  Napi::Value peer(const Napi::CallbackInfo& info);
  Napi::Value queued_bytes(const Napi::CallbackInfo& info);
  Napi::Value closed(const Napi::CallbackInfo& info);
  template <Napi::FunctionReference Channel::* callback>
  Napi::Value get_callback(const Napi::CallbackInfo& info);
  template <Napi::FunctionReference Channel::* callback>
  void set_callback_property(const Napi::CallbackInfo& info, const Napi::Value& value);
  void send(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  void on_ready(int events);
  void read();
  void deliver();
  void drained();
  void update_events();
  // The connection is over; tells JavaScript unless this side closed. nullptr: in good order.
  void finish(const Error* error);
  void shut() noexcept;

  const std::shared_ptr<Environment> state_of_environment_;
  Descriptor socket_;
  Peer peer_;
  FrameReader reader_;
  FrameWriter writer_;
  Poll poll_;
  std::unique_ptr<Timer> flush_timer_;
  State state_ = State::kOpen;
  Napi::FunctionReference on_frame_;
  Napi::FunctionReference on_close_;
  Napi::FunctionReference on_drain_;
};

}  // namespace baton::addon
