#include "native/fakegpu/nvml/state.h"

#include <pthread.h>

#include <array>
#include <mutex>
#include <string>
#include <utility>

#include "native/fakegpu/common/config.h"
#include "native/fakegpu/common/export.h"

namespace baton::standin {
namespace {

struct Library {
  std::mutex mutex;
  uint32_t initialised = 0;
  std::shared_ptr<NvmlState> state;
};

// Never destroyed: calls may come while the process ends.
Library& library() {
  static auto* const only = new Library;
  return *only;
}

std::array<char, kMostDevices> device_handles;

// A child forked while another thread is in a call must not find this lock taken for good.
void before_fork() {
  library().mutex.lock();
}
void after_fork() {
  library().mutex.unlock();
}

}  // namespace

nvml::Return initialise_nvml() {
  Library& own = library();
  const std::lock_guard lock(own.mutex);
  if (own.initialised++ > 0) return nvml::kSuccess;
  --own.initialised;
  // Kept after the last shutdown: the table is shared, and faults count on.
  if (!own.state) {
    std::string problem;
    const auto config = read_config(&problem);
    auto faults = config ? faults_from_environment("cu", &problem) : std::nullopt;
    auto table = faults ? Table::open(*config, &problem) : nullptr;
    if (!table) {
      complain(problem);
      return nvml::kDriverNotLoaded;
    }
    own.state = std::make_shared<NvmlState>(NvmlState{std::move(table), std::move(*faults)});
    // After the table's, so that this lock is taken before its.
    pthread_atfork(before_fork, after_fork, after_fork);
  }
  ++own.initialised;
  return nvml::kSuccess;
}

nvml::Return shut_down_nvml() {
  Library& own = library();
  const std::lock_guard lock(own.mutex);
  if (own.initialised == 0) return nvml::kUninitialized;
  --own.initialised;
  return nvml::kSuccess;
}

nvml::Return enter(std::shared_ptr<NvmlState>* state, const char* function) {
  Library& own = library();
  {
    const std::lock_guard lock(own.mutex);
    if (own.initialised == 0) return nvml::kUninitialized;
    *state = own.state;
  }
  const auto struck = (*state)->faults.strike(function, -1);
  return struck ? static_cast<nvml::Return>(*struck) : nvml::kSuccess;
}

nvml::Return enter(std::shared_ptr<NvmlState>* state, uint32_t* index, const char* function, nvml::Device device) {
  Library& own = library();
  {
    const std::lock_guard lock(own.mutex);
    if (own.initialised == 0) return nvml::kUninitialized;
    *state = own.state;
  }
  const auto offset = reinterpret_cast<uintptr_t>(device) - reinterpret_cast<uintptr_t>(device_handles.data());
  if (offset >= (*state)->table->devices()) return nvml::kInvalidArgument;
  *index = static_cast<uint32_t>(offset);
  const auto struck = (*state)->faults.strike(function, static_cast<int32_t>(*index));
  return struck ? static_cast<nvml::Return>(*struck) : nvml::kSuccess;
}

nvml::Device device_handle(uint32_t index) {
  return reinterpret_cast<nvml::Device>(&device_handles[index]);
}

}  // namespace baton::standin
