// The table's file: opening, creating, locking, forking.
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "native/fakegpu/common/export.h"
#include "native/fakegpu/common/table_layout.h"
#include "native/fakegpu/common/table_lock.h"

namespace baton::standin {
namespace {

constexpr auto kLockTimeout = std::chrono::seconds(10);

std::string errno_text(int error) {
  return std::strerror(error);
}

// The table of this library in this process, for the fork handlers. Set once, before the handlers are registered.
Table* forked_table = nullptr;

bool flock_before(int fd, std::chrono::steady_clock::time_point deadline) {
  auto pause = std::chrono::microseconds(10);
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return false;
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::microseconds(1000));
  }
  return true;
}

}  // namespace

Table::Lock::Lock(Table& table) : table_(table), in_process_(table.mutex_) {
  if (table.fd_ < 0) {
    std::string problem;
    if (!table.open_file(&problem)) {
      complain(problem);
      return;
    }
  }
  held_ = flock_before(table.fd_, std::chrono::steady_clock::now() + kLockTimeout);
  if (!held_) complain("the lock of " + table.path_ + " could not be had within 10 s: is a process stopped?");
}

Table::Lock::~Lock() {
  if (held_) flock(table_.fd_, LOCK_UN);
}

std::unique_ptr<Table> Table::open(const Config& config, std::string* problem) {
  std::unique_ptr<Table> table(new Table);
  table->path_ = config.table;
  if (!table->open_file(problem)) return nullptr;
  {
    const Lock lock(*table);
    if (!lock.held()) {
      *problem = "the table " + config.table + " is locked";
      return nullptr;
    }
    if (!table->initialise_or_check(config, problem)) return nullptr;
  }
  if (forked_table == nullptr) {
    forked_table = table.get();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  }
  return table;
}

Table::~Table() {
  if (forked_table == this) forked_table = nullptr;
  if (fd_ >= 0) close(fd_);
  if (header_ != nullptr) {
    munmap(header_, sizeof(Header) + kMostHandles * sizeof(HandleRecord) + kMostHolders * sizeof(HolderRecord));
  }
}

// A descriptor and an identity of this process's own: flock belongs to the open description, which a fork shares.
bool Table::open_file(std::string* problem) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd_ < 0) {
    *problem = "the table " + path_ + " cannot be opened: " + errno_text(errno);
    return false;
  }
  self_ = this_process();
  return true;
}

bool Table::initialise_or_check(const Config& config, std::string* problem) {
  const size_t bytes = sizeof(Header) + kMostHandles * sizeof(HandleRecord) + kMostHolders * sizeof(HolderRecord);
  struct stat status{};
  if (fstat(fd_, &status) != 0) {
    *problem = "the table " + path_ + " cannot be examined: " + errno_text(errno);
    return false;
  }
  // Only what is empty is made into a table, or what a creator left without its magic when it was killed.
  if (status.st_size != 0 && static_cast<size_t>(status.st_size) != bytes) {
    *problem = path_ + " is no table of this version: expected " + std::to_string(bytes) + " bytes, found " +
               std::to_string(status.st_size);
    return false;
  }
  if (status.st_size == 0 && ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
    *problem = "the table " + path_ + " cannot be created: " + errno_text(errno);
    return false;
  }
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (mapped == MAP_FAILED) {
    *problem = "the table " + path_ + " cannot be mapped: " + errno_text(errno);
    return false;
  }
  header_ = static_cast<Header*>(mapped);

  if (header_->magic.load(std::memory_order_acquire) == 0) {
    if (!config.devices || !config.bytes_per_device) {
      *problem = "there is no table " + path_ +
                 " yet; the process that creates it needs BATON_STANDIN_DEVICES and BATON_STANDIN_BYTES";
      return false;
    }
    header_->devices = *config.devices;
    header_->most_handles = kMostHandles;
    header_->bytes_per_device = *config.bytes_per_device;
    header_->granularity_bytes = config.granularity_bytes.value_or(kDefaultGranularityBytes);
    header_->context_bytes = config.context_bytes.value_or(0);
    header_->next_id.store(1, std::memory_order_relaxed);
    header_->magic.store(kTableMagic, std::memory_order_release);
  }
  if (header_->magic.load(std::memory_order_acquire) != kTableMagic) {
    *problem = path_ + " is no table of stand-in GPUs";
    return false;
  }
  devices_ = header_->devices;
  bytes_per_device_ = header_->bytes_per_device;
  granularity_bytes_ = header_->granularity_bytes;
  context_bytes_ = header_->context_bytes;

  const auto agrees = [&](const char* variable, const auto& wanted, uint64_t found) {
    if (!wanted || *wanted == found) return true;
    *problem = std::string(variable) + " is " + std::to_string(*wanted) + ", but the table " + path_ + " has " +
               std::to_string(found);
    return false;
  };
  return agrees("BATON_STANDIN_DEVICES", config.devices, devices_) &&
         agrees("BATON_STANDIN_BYTES", config.bytes_per_device, bytes_per_device_) &&
         agrees("BATON_STANDIN_GRANULARITY", config.granularity_bytes, granularity_bytes_) &&
         agrees("BATON_STANDIN_CONTEXT_BYTES", config.context_bytes, context_bytes_);
}

// No lock is held across a fork: the child would share the description, and so the lock, and keep it when the
// parent dies.
void Table::before_fork() {
  if (forked_table != nullptr) forked_table->mutex_.lock();
}

void Table::after_fork_in_parent() {
  if (forked_table != nullptr) forked_table->mutex_.unlock();
}

void Table::after_fork_in_child() {
  if (forked_table == nullptr) return;
  close(forked_table->fd_);
  forked_table->fd_ = -1;
  forked_table->liveness_.forget_all();
  forked_table->snapshot_ = {};
  forked_table->mutex_.unlock();
}

}  // namespace baton::standin
