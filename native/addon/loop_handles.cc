#include "native/addon/loop_handles.h"

#include <cstdlib>
#include <new>
#include <string>

#include "native/addon/errors.h"

namespace baton::addon {
namespace {

// Behind a handle while it is closing: its owner is gone by then.
struct Closing {
  std::shared_ptr<Environment> environment;
};

[[noreturn]] void throw_uv(Environment& environment, int result, const char* what) {
  throw to_javascript(environment.env(), Error{.code = "SYSTEM_LOOP",
                                               .message = std::string("Cannot ") + what + ".",
                                               .expected = "a handle of the event loop",
                                               .found = uv_strerror(result),
                                               .action = "",
                                               .driver_result = {}});
}

}  // namespace

LoopHandle::LoopHandle(Environment& environment, int type)
    : environment_(environment), memory_(std::calloc(1, uv_handle_size(type))) {
  if (memory_ == nullptr) throw std::bad_alloc();
}

void LoopHandle::opened() noexcept {
  opened_ = true;
  environment_.handle_opened();
}

void LoopHandle::close() noexcept {
  if (memory_ == nullptr) return;
  uv_handle_s* const closing = handle();
  memory_ = nullptr;
  if (!opened_) {
    std::free(closing);
    return;
  }
  uv_handle_set_data(closing, new Closing{environment_.shared_from_this()});
  uv_close(closing, &LoopHandle::closed);
}

void LoopHandle::closed(uv_handle_s* handle) {
  const std::unique_ptr<Closing> closing(static_cast<Closing*>(uv_handle_get_data(handle)));
  std::free(handle);
  closing->environment->handle_closed();
}

void LoopHandle::unref() noexcept {
  if (memory_ != nullptr) uv_unref(handle());
}

Poll::Poll(Environment& environment, int fd, std::function<void(int, int)> ready)
    : LoopHandle(environment, kUvPoll), ready_(std::move(ready)) {
  if (const int result = uv_poll_init(environment.loop(), as<uv_poll_s>(), fd); result != 0) {
    throw_uv(environment, result, "watch a descriptor");
  }
  opened();
  uv_handle_set_data(handle(), this);
}

void Poll::set_events(int events) noexcept {
  if (handle() == nullptr || events == events_) return;
  events_ = events;
  if (events == 0) {
    uv_poll_stop(as<uv_poll_s>());
  } else {
    uv_poll_start(as<uv_poll_s>(), events, &Poll::on_ready);
  }
}

void Poll::again() noexcept {
  const int events = events_;
  events_ = 0;
  set_events(events);
}

void Poll::on_ready(uv_poll_s* handle, int status, int events) {
  auto* self = static_cast<Poll*>(uv_handle_get_data(reinterpret_cast<uv_handle_s*>(handle)));
  // libuv has stopped the handle then.
  if (status < 0) self->events_ = 0;
  self->environment_.guard([&] { self->ready_(status, events); });
}

Timer::Timer(Environment& environment, std::function<void()> due)
    : LoopHandle(environment, kUvTimer), due_(std::move(due)) {
  if (const int result = uv_timer_init(environment.loop(), as<uv_timer_s>()); result != 0) {
    throw_uv(environment, result, "make a timer");
  }
  opened();
  uv_handle_set_data(handle(), this);
}

void Timer::start(uint64_t timeout_ms) noexcept {
  if (handle() != nullptr) uv_timer_start(as<uv_timer_s>(), &Timer::on_due, timeout_ms, 0);
}

void Timer::stop() noexcept {
  if (handle() != nullptr) uv_timer_stop(as<uv_timer_s>());
}

void Timer::on_due(uv_timer_s* handle) {
  auto* self = static_cast<Timer*>(uv_handle_get_data(reinterpret_cast<uv_handle_s*>(handle)));
  self->environment_.guard([self] { self->due_(); });
}

}  // namespace baton::addon
