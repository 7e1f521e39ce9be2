// Gives a tensor's storage a new home without touching any tensor: the StorageImpl keeps its identity, so every
// view of it, in Python or in C++, follows at once. Built together with cpu_allocator.cc against the installed torch.
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

namespace {

thread_local std::string reason;

}  // namespace

// Copies the bytes of the storage (the address that Python calls UntypedStorage._cdata) to a block of whatever CPU
// allocator is current, and lets go of the old block. nullptr on success, else why not; then nothing has changed.
// The caller sees to it that nobody else uses the storage meanwhile, and that it is not shared with other processes.
extern "C" __attribute__((visibility("default"))) const char* baton_torch_rehome(uint64_t storage_address) {
  try {
    auto* storage = reinterpret_cast<c10::StorageImpl*>(static_cast<uintptr_t>(storage_address));
    if (storage == nullptr) return "no storage at address 0";
    if (storage->device_type() != c10::DeviceType::CPU) return "the storage is not in CPU memory";
    const size_t bytes = storage->nbytes();
    if (bytes == 0) return nullptr;
    const void* old_data = storage->mutable_data();  // ends copy-on-write first
    if (old_data == nullptr) return "the storage has no data";
    c10::Allocator* allocator = c10::GetCPUAllocator();
    c10::DataPtr home = allocator->allocate(bytes);
    std::memcpy(home.mutable_get(), old_data, bytes);
    storage->set_data_ptr_noswap(std::move(home));
    if (storage->resizable()) storage->set_allocator(allocator);
    return nullptr;
  } catch (const std::exception& error) {
    reason = error.what();
    return reason.c_str();
  }
}
