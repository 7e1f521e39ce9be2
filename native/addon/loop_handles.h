// Owners of libuv handles. libuv gives a handle's memory back in a later turn of the loop; the owner may go at once.
#pragma once

#include <functional>
#include <memory>

#include "native/addon/environment.h"
#include "native/driver/error.h"

namespace baton::addon {

// What both kinds share: memory of the size that this libuv wants, and closing.
class LoopHandle {
 public:
  LoopHandle(const LoopHandle&) = delete;
  LoopHandle& operator=(const LoopHandle&) = delete;

  // Idempotent. A descriptor may be closed right after.
  void close() noexcept;
  void unref() noexcept;

 protected:
  LoopHandle(Environment& environment, int type);
  ~LoopHandle() { close(); }
  void opened() noexcept;  // by uv_*_init

  template <class Handle>
  Handle* as() const {
    return reinterpret_cast<Handle*>(memory_);
  }
  uv_handle_s* handle() const { return as<uv_handle_s>(); }

  Environment& environment_;

 private:
  static void closed(uv_handle_s* handle);

  void* memory_ = nullptr;  // nullptr: closed
  bool opened_ = false;
};

// Tells when a descriptor is ready. `ready(status, events)`: after a negative status polling has stopped.
class Poll : public LoopHandle {
 public:
  Poll(Environment& environment, int fd, std::function<void(int status, int events)> ready);

  // Events to wait for; 0: none.
  void set_events(int events) noexcept;
  // Starts anew although the events are the same, so that a readiness that was seen is told again.
  void again() noexcept;

 private:
  static void on_ready(uv_poll_s* handle, int status, int events);
  const std::function<void(int, int)> ready_;
  int events_ = 0;
};

class Timer : public LoopHandle {
 public:
  Timer(Environment& environment, std::function<void()> due);
  void start(uint64_t timeout_ms) noexcept;
  void stop() noexcept;

 private:
  static void on_due(uv_timer_s* handle);
  const std::function<void()> due_;
};

}  // namespace baton::addon
