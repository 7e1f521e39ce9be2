// The lock of the shared table. Private to table*.cc.
#pragma once

#include <mutex>

#include "native/fakegpu/common/table.h"

namespace baton::standin {

// Both locks, or neither: held() tells. Waits at most kLockTimeoutMs, which is never needed by a change but by a
// process that was stopped (SIGSTOP) within one.
class Table::Lock {
 public:
  explicit Lock(Table& table);
  ~Lock();
  bool held() const { return held_; }

  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Table& table_;
  std::unique_lock<std::mutex> in_process_;
  bool held_ = false;
};

}  // namespace baton::standin
