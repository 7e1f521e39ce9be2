// What the stand-in knows in this process, from cuInit on.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "native/driver/cuda_abi.h"
#include "native/fakegpu/common/config.h"
#include "native/fakegpu/common/faults.h"
#include "native/fakegpu/common/registry.h"
#include "native/fakegpu/common/table.h"
#include "native/fakegpu/cuda/device_memory.h"
#include "native/fakegpu/cuda/host_memory.h"
#include "native/fakegpu/cuda/model_clock.h"
#include "native/fakegpu/cuda/stream.h"

namespace baton::standin {

// For calls that are about no particular GPU: faults look at the current context's.
inline constexpr int32_t kAnyDevice = -1;

// A GPU's primary context; the stand-in has no others.
struct PrimaryContext {
  uint32_t device = 0;
  uint32_t retained = 0;
  Hold hold;
  std::shared_ptr<StreamQueue> default_stream;
};

struct LoadedModule {
  std::set<std::string> entries;
};

class State {
 public:
  State(const Config& config, std::unique_ptr<Table> table, Faults faults);

  // nullptr before cuInit, and in a forked child: a child cannot use CUDA, as with a real driver.
  static State* get();
  static cuda::Result initialise();

  // Contexts. Handles are pointers to PrimaryContext.
  cuda::Result retain_context(uint32_t device, cuda::Context* context);
  cuda::Result release_context(uint32_t device);
  bool context_active(uint32_t device);
  PrimaryContext* find_context(cuda::Context handle);
  // Of this thread; nullptr when there is none, or its last holder released it.
  PrimaryContext* current();
  static std::vector<PrimaryContext*>& context_stack();

  // Streams and events. The null stream, and the two special values for it, are the current context's default.
  cuda::Stream add_stream(uint32_t device, bool non_blocking);
  cuda::Result remove_stream(cuda::Stream stream);
  std::shared_ptr<StreamQueue> find_stream(cuda::Stream stream);
  std::vector<std::shared_ptr<StreamQueue>> streams_of(uint32_t device);
  cuda::Event add_event(bool timed);
  cuda::Result remove_event(cuda::Event event);
  std::shared_ptr<EventRecord> find_event(cuda::Event event);
  // Submits in the order that CUDA promises between the default stream and the others.
  cuda::Result submit(cuda::Stream stream, Work work);

  const Config config;
  const std::unique_ptr<Table> table;
  const Faults faults;
  ModelClock clock;
  DeviceMemory memory;
  HostMemory host;

  std::mutex modules_mutex;
  std::map<cuda::Module, std::unique_ptr<LoadedModule>> modules;

 private:
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();
  void order_before(const std::shared_ptr<StreamQueue>& stream);

  std::mutex mutex_;  // contexts, streams, events
  std::array<PrimaryContext, kMostDevices> contexts_;
  std::map<cuda::Stream, std::shared_ptr<StreamQueue>> streams_;
  std::map<cuda::Event, std::shared_ptr<EventRecord>> events_;
  uintptr_t next_handle_ = 0x5000;
};

// The start of every call: whether the driver is there, and what the fault rules say. Not kSuccess: return it.
cuda::Result enter(State** state, const char* function, int32_t device);
// As enter(), and the current context must be there.
cuda::Result enter_with_context(State** state, PrimaryContext** context, const char* function);
bool valid_device(const State& state, int32_t device);

}  // namespace baton::standin

//   STANDIN_FUNCTION(cuMemRelease, AllocationHandle handle) {
//     STANDIN_ENTER(kAnyDevice);
//     …
//   }
#define STANDIN_FUNCTION(name, ...) STANDIN_DEFINE(baton::cuda::Result, name, __VA_ARGS__)

// Declares `state`.
#define STANDIN_ENTER(device)             \
  baton::standin::State* state = nullptr; \
  if (const auto refused = baton::standin::enter(&state, __func__, device); refused != kSuccess) return refused

// Declares `state` and `context`.
#define STANDIN_ENTER_CONTEXT()                                                                                 \
  baton::standin::State* state = nullptr;                                                                       \
  baton::standin::PrimaryContext* context = nullptr;                                                            \
  if (const auto refused = baton::standin::enter_with_context(&state, &context, __func__); refused != kSuccess) \
  return refused
