// The Listener of src/native.ts.
#pragma once

#include <memory>
#include <string>

#include "native/addon/channel.h"

namespace baton::addon {

class Listener : public Napi::ObjectWrap<Listener>, public Resource {
 public:
  static void define(Environment& environment);
  static Napi::Object create(Environment& environment, Descriptor socket, const std::string& path, ChannelLimits limits,
                             Napi::Function on_connection);

  explicit Listener(const Napi::CallbackInfo& info);
  ~Listener() override;
  void close_now() noexcept override;

 private:
  Napi::Value path(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);
  void unref(const Napi::CallbackInfo& info);
  void accept();

  const std::shared_ptr<Environment> state_of_environment_;
  Descriptor socket_;
  std::string path_;
  ChannelLimits limits_;
  Napi::FunctionReference on_connection_;
  Poll poll_;
  Timer retry_;
};

}  // namespace baton::addon
