// The few functions of libuv that the addon calls. node exports them, and their ABI is fixed since libuv 1.0; with
// declarations of our own no uv.h of the right version is needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct uv_loop_s;
struct uv_handle_s;
struct uv_poll_s;
struct uv_timer_s;

size_t uv_handle_size(int type);
void uv_handle_set_data(uv_handle_s* handle, void* data);
void* uv_handle_get_data(const uv_handle_s* handle);
void uv_close(uv_handle_s* handle, void (*closed)(uv_handle_s*));
void uv_ref(uv_handle_s* handle);
void uv_unref(uv_handle_s* handle);
const char* uv_strerror(int error);

int uv_poll_init(uv_loop_s* loop, uv_poll_s* handle, int fd);
int uv_poll_start(uv_poll_s* handle, int events, void (*ready)(uv_poll_s*, int status, int events));
int uv_poll_stop(uv_poll_s* handle);

int uv_timer_init(uv_loop_s* loop, uv_timer_s* handle);
int uv_timer_start(uv_timer_s* handle, void (*due)(uv_timer_s*), uint64_t timeout_ms, uint64_t repeat_ms);
int uv_timer_stop(uv_timer_s* handle);
}

namespace baton::addon {

// uv_handle_type
inline constexpr int kUvPoll = 8;
inline constexpr int kUvTimer = 13;
// uv_poll_event
inline constexpr int kReadable = 1;
inline constexpr int kWritable = 2;

}  // namespace baton::addon
