// Failures on demand, so that what depends on the driver can be tested when it breaks.
//
//   BATON_STANDIN_FAULTS = rule[,rule…]
//   rule      = FUNCTION[:KEY=VALUE…]
//   FUNCTION  = a function of the stand-in libraries, without its version: cuMemCreate, nvmlDeviceGetMemoryInfo
//   after=N     lets the first N matching calls through; default 0
//   count=N     then acts on N calls; default: on every call from there on
//   result=N    the call does nothing and returns N, which is not 0 (a CUresult or nvmlReturn_t)
//   delay_ms=N  the call waits that long first
//   signal=N    the process sends itself signal N (9: it dies inside the driver, 19: it stops)
//   device=N    only calls about this GPU: the one named in the call, else the current context's
//   pid=N       only in this process
//   role=NAME   only in processes with BATON_STANDIN_ROLE=NAME
//
// At least one of result, delay_ms and signal is needed. Calls are counted in each process for itself, and for
// each rule those that match it. Example: cuMemCreate:after=3:result=2,cuMemMap:count=1:result=999
// A rule that cannot be understood, or that names no function of the stand-in, makes cuInit and nvmlInit fail.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace baton::standin {

struct FaultRule {
  std::string function;
  uint64_t after = 0;
  uint64_t count = UINT64_MAX;
  std::optional<int32_t> result;
  std::optional<uint32_t> delay_ms;
  std::optional<int> signal;
  std::optional<int32_t> device;
  std::optional<pid_t> pid;
  std::optional<std::string> role;
};

// "cuMemGetInfo_v2" is "cuMemGetInfo" in a rule.
std::string_view without_version(std::string_view function);

// On failure nullopt, and *problem says which rule is wrong and how. `knows_function` decides about names.
using KnowsFunction = std::function<bool(std::string_view)>;
std::optional<std::vector<FaultRule>> parse_faults(std::string_view text, const KnowsFunction& knows_function,
                                                   std::string* problem);

// The rules of this process, with their counts. Thread safe.
class Faults {
 public:
  // Keeps the rules that can ever match a process with this pid and role.
  Faults(std::vector<FaultRule> rules, pid_t pid, std::string_view role);

  // Does what the rules say about this call: may wait, may not return at all. A result when the call must fail
  // with it. `device` -1: the call is about no GPU.
  std::optional<int32_t> strike(std::string_view function, int32_t device) const;
  // Whether any rule asks for a device: only then is it worth finding out.
  bool empty() const { return rules_.empty(); }

 private:
  struct Counted {
    FaultRule rule;
    std::unique_ptr<std::atomic<uint64_t>> calls;
  };
  std::vector<Counted> rules_;
};

// The rules of the environment, for this process and this library; `prefix_of_other` ("nvml") begins the names that
// are the other library's to check. On failure nullopt, and *problem says why.
std::optional<Faults> faults_from_environment(std::string_view prefix_of_other, std::string* problem);

}  // namespace baton::standin
