// Work off the event loop, as a promise.
#pragma once

#include <functional>
#include <optional>

#include "native/addon/errors.h"
#include "native/addon/napi_setup.h"

namespace baton::addon {

template <class T>
class Task : public Napi::AsyncWorker {
 public:
  // `execute` runs in a thread of libuv's pool and must not touch JavaScript; `resolve` makes the promise's value.
  static Napi::Promise start(Napi::Env env, std::function<Result<T>()> execute,
                             std::function<Napi::Value(Napi::Env, T)> resolve) {
    auto* task = new Task(env, std::move(execute), std::move(resolve));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();  // deletes itself when it is done
    return promise;
  }

  void Execute() override { result_.emplace(execute_()); }
  void OnOK() override {
    const Napi::HandleScope scope(Env());
    try {
      deferred_.Resolve(resolve_(Env(), check(Env(), std::move(*result_))));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Task(Napi::Env env, std::function<Result<T>()> execute, std::function<Napi::Value(Napi::Env, T)> resolve)
      : Napi::AsyncWorker(env, "baton"),
        deferred_(Napi::Promise::Deferred::New(env)),
        execute_(std::move(execute)),
        resolve_(std::move(resolve)) {}

  Napi::Promise::Deferred deferred_;
  const std::function<Result<T>()> execute_;
  const std::function<Napi::Value(Napi::Env, T)> resolve_;
  std::optional<Result<T>> result_;
};

}  // namespace baton::addon
