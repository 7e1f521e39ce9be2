// Memory of the stand-in GPUs within one process: what is mapped can be used, what is not faults.
#include <sys/mman.h>

#include <algorithm>
#include <thread>

#include "native/test/fakegpu_support.h"

namespace baton::test {
namespace {

const auto* const table = ::testing::AddGlobalTestEnvironment(new StandinTable);

class Memory : public ::testing::Test {
 protected:
  void SetUp() override { context = client.use(0); }
  void TearDown() override {
    EXPECT_EQ(used(), 0U) << "the test left memory behind";
    client.cuda.cuDevicePrimaryCtxRelease.raw(0);
  }
  uint64_t used(int device = 0) {
    cuda::Context of_device = nullptr;
    EXPECT_EQ(client.cuda.cuDevicePrimaryCtxRetain.raw(&of_device, device), cuda::kSuccess);
    EXPECT_EQ(client.cuda.cuCtxPushCurrent.raw(of_device), cuda::kSuccess);
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    EXPECT_EQ(client.cuda.cuMemGetInfo.raw(&free_bytes, &total_bytes), cuda::kSuccess);
    EXPECT_EQ(total_bytes, kDeviceBytes);
    client.cuda.cuCtxPopCurrent.raw(&of_device);
    client.cuda.cuDevicePrimaryCtxRelease.raw(device);
    return total_bytes - free_bytes;
  }

  Client client;
  cuda::Context context = nullptr;
};
using MemoryDeathTest = Memory;

// A child of a death test must die of the access itself, not in a sanitizer's handler.
template <class T>
void touch(T action) {
  signal(SIGSEGV, SIG_DFL);
  action();
  _exit(0);
}

TEST_F(Memory, IsCountedFromCreateToTheLastReference) {
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(0, 3 * kPiece, &handle), cuda::kSuccess);
  EXPECT_EQ(used(), 3 * kPiece);
  EXPECT_EQ(used(1), 0U);
  char* memory = client.map(handle, 3 * kPiece);
  EXPECT_EQ(client.cuda.cuMemRelease.raw(handle), cuda::kSuccess);
  EXPECT_EQ(used(), 3 * kPiece) << "a mapping keeps its memory";
  std::memset(memory, 7, 3 * kPiece);
  client.unmap(memory, 3 * kPiece);
  EXPECT_EQ(used(), 0U);
  EXPECT_EQ(client.cuda.cuMemRelease.raw(handle), cuda::kInvalidValue) << "released twice";
}

TEST_F(Memory, ComesBackAtTheSameAddressWithTheSameBytes) {
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(0, kPiece, &handle), cuda::kSuccess);
  char* memory = client.map(handle, kPiece);
  const auto address = reinterpret_cast<uint64_t>(memory);
  std::memset(memory, 42, kPiece);
  ASSERT_EQ(client.cuda.cuMemUnmap.raw(address, kPiece), cuda::kSuccess);
  ASSERT_EQ(client.cuda.cuMemMap.raw(address, kPiece, 0, handle, 0), cuda::kSuccess);
  ASSERT_EQ(client.set_access(address, kPiece, 0, cuda::kAccessRead), cuda::kSuccess);
  EXPECT_EQ(std::count(memory, memory + kPiece, 42), static_cast<ptrdiff_t>(kPiece));
  client.unmap(memory, kPiece);
  client.cuda.cuMemRelease.raw(handle);
}

TEST_F(Memory, TwoMappingsShareTheirBytes) {
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(0, kPiece, &handle), cuda::kSuccess);
  char* one = client.map(handle, kPiece);
  char* other = client.map(handle, kPiece, cuda::kAccessRead);
  one[5] = 'x';
  EXPECT_EQ(other[5], 'x');
  EXPECT_EQ(used(), kPiece);
  client.unmap(one, kPiece);
  client.unmap(other, kPiece);
  client.cuda.cuMemRelease.raw(handle);
}

TEST_F(Memory, LimitIsTheDevices) {
  std::vector<cuda::AllocationHandle> handles;
  cuda::AllocationHandle handle = 0;
  while (client.create(0, kPiece, &handle) == cuda::kSuccess)
    handles.push_back(handle);
  EXPECT_EQ(handles.size(), kDeviceBytes / kPiece);
  EXPECT_EQ(client.create(0, kPiece, &handle), cuda::kOutOfMemory);
  EXPECT_EQ(client.create(1, kPiece, &handle), cuda::kSuccess) << "the other GPU is empty";
  EXPECT_EQ(client.cuda.cuMemRelease.raw(handle), cuda::kSuccess);
  for (const auto created : handles)
    EXPECT_EQ(client.cuda.cuMemRelease.raw(created), cuda::kSuccess);
}

TEST_F(Memory, RefusesWhatARealDriverRefuses) {
  const auto& cuda = client.cuda;
  cuda::AllocationHandle handle = 0;
  EXPECT_EQ(client.create(0, kPiece + 4096, &handle), cuda::kInvalidValue) << "not a multiple of the granularity";
  EXPECT_EQ(client.create(static_cast<int>(kDevices), kPiece, &handle), cuda::kInvalidDevice);
  ASSERT_EQ(client.create(0, 2 * kPiece, &handle), cuda::kSuccess);
  const uint64_t range = client.reserve(8 * kPiece);
  EXPECT_EQ(range % kPiece, 0U);
  EXPECT_EQ(cuda.cuMemMap.raw(range, 2 * kPiece, kPiece, handle, 0), cuda::kInvalidValue) << "an offset";
  EXPECT_EQ(cuda.cuMemMap.raw(range, 3 * kPiece, 0, handle, 0), cuda::kInvalidValue) << "more than there is";
  EXPECT_EQ(cuda.cuMemMap.raw(range + 7 * kPiece, 2 * kPiece, 0, handle, 0), cuda::kInvalidValue) << "past the end";
  ASSERT_EQ(cuda.cuMemMap.raw(range, 2 * kPiece, 0, handle, 0), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemMap.raw(range + kPiece, kPiece, 0, handle, 0), cuda::kAlreadyMapped);
  EXPECT_EQ(cuda.cuMemUnmap.raw(range, kPiece), cuda::kInvalidValue) << "half a mapping";
  EXPECT_EQ(client.set_access(range, kPiece, 0, cuda::kAccessRead), cuda::kInvalidValue) << "half a mapping";
  EXPECT_EQ(client.set_access(range + 2 * kPiece, kPiece, 0, cuda::kAccessRead), cuda::kInvalidValue) << "no mapping";
  EXPECT_EQ(cuda.cuMemAddressFree.raw(range, 8 * kPiece), cuda::kInvalidValue) << "still mapped";
  EXPECT_EQ(cuda.cuMemUnmap.raw(range, 2 * kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemAddressFree.raw(range, 4 * kPiece), cuda::kInvalidValue) << "half a range";
  EXPECT_EQ(cuda.cuMemAddressFree.raw(range, 8 * kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemRelease.raw(handle), cuda::kSuccess);
}

TEST_F(Memory, AccessIsReadBackByDevice) {
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(0, kPiece, &handle), cuda::kSuccess);
  char* memory = client.map(handle, kPiece, cuda::kAccessRead);
  unsigned long long flags = 99;
  cuda::MemoryLocation location{cuda::kLocationDevice, 0};
  ASSERT_EQ(client.cuda.cuMemGetAccess.raw(&flags, &location, reinterpret_cast<uint64_t>(memory)), cuda::kSuccess);
  EXPECT_EQ(flags, cuda::kAccessRead);
  location.id = 1;
  ASSERT_EQ(client.cuda.cuMemGetAccess.raw(&flags, &location, reinterpret_cast<uint64_t>(memory)), cuda::kSuccess);
  EXPECT_EQ(flags, cuda::kAccessNone);
  client.unmap(memory, kPiece);
  client.cuda.cuMemRelease.raw(handle);
}

TEST_F(Memory, HandleOfAnAddressKeepsTheMemory) {
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(1, kPiece, &handle, false), cuda::kSuccess);
  char* memory = client.map(handle, kPiece);
  ASSERT_EQ(client.cuda.cuMemRelease.raw(handle), cuda::kSuccess);
  cuda::AllocationHandle retained = 0;
  ASSERT_EQ(client.cuda.cuMemRetainAllocationHandle.raw(&retained, memory + 100), cuda::kSuccess);
  EXPECT_EQ(retained, handle);
  client.unmap(memory, kPiece);
  EXPECT_EQ(used(1), kPiece);
  cuda::AllocationProperties properties{};
  ASSERT_EQ(client.cuda.cuMemGetAllocationPropertiesFromHandle.raw(&properties, retained), cuda::kSuccess);
  EXPECT_EQ(properties.location.id, 1);
  EXPECT_EQ(properties.requested_handle_types, cuda::kHandleNone);
  int fd = -1;
  EXPECT_EQ(client.cuda.cuMemExportToShareableHandle.raw(&fd, retained, cuda::kHandlePosixFileDescriptor, 0),
            cuda::kNotPermitted)
      << "made without asking for it";
  EXPECT_EQ(client.cuda.cuMemRelease.raw(retained), cuda::kSuccess);
  EXPECT_EQ(used(1), 0U);
}

TEST_F(Memory, AllocatedMemoryIsUsableAndFreed) {
  cuda::DevicePointer pointer = 0;
  ASSERT_EQ(client.cuda.cuMemAlloc.raw(&pointer, 100), cuda::kSuccess);
  EXPECT_EQ(used(), kPiece);
  ASSERT_EQ(client.cuda.cuMemsetD8.raw(pointer, 9, 100), cuda::kSuccess);
  std::array<char, 100> back{};
  ASSERT_EQ(client.cuda.cuMemcpyDtoH.raw(back.data(), pointer, back.size()), cuda::kSuccess);
  EXPECT_EQ(std::count(back.begin(), back.end(), 9), 100);
  EXPECT_EQ(client.cuda.cuMemFree.raw(pointer + 1), cuda::kInvalidValue);
  EXPECT_EQ(client.cuda.cuMemFree.raw(pointer), cuda::kSuccess);
}

TEST_F(Memory, CopiesToWhatIsNotThereAreErrorsNotFaults) {
  const auto& cuda = client.cuda;
  cuda::AllocationHandle handle = 0;
  ASSERT_EQ(client.create(0, kPiece, &handle), cuda::kSuccess);
  const uint64_t range = client.reserve(2 * kPiece);
  std::vector<char> host(kPiece + 1);
  EXPECT_EQ(cuda.cuMemcpyHtoD.raw(range, host.data(), 1), cuda::kInvalidValue) << "not mapped";
  ASSERT_EQ(cuda.cuMemMap.raw(range, kPiece, 0, handle, 0), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemcpyHtoD.raw(range, host.data(), 1), cuda::kInvalidValue) << "mapped without access";
  ASSERT_EQ(client.set_access(range, kPiece, 0, cuda::kAccessRead), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemcpyHtoD.raw(range, host.data(), 1), cuda::kInvalidValue) << "mapped for reading";
  EXPECT_EQ(cuda.cuMemsetD8.raw(range, 1, 1), cuda::kInvalidValue) << "mapped for reading";
  EXPECT_EQ(cuda.cuMemcpyDtoH.raw(host.data(), range, kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemcpyDtoH.raw(host.data(), range, kPiece + 1), cuda::kInvalidValue) << "one byte too many";
  ASSERT_EQ(client.set_access(range, kPiece, 0, cuda::kAccessReadWrite), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemcpyHtoD.raw(range, host.data(), kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemcpyDtoD.raw(range, reinterpret_cast<uint64_t>(host.data()), 8), cuda::kInvalidValue)
      << "host memory that is not registered is no device pointer";
  EXPECT_EQ(cuda.cuMemUnmap.raw(range, kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemAddressFree.raw(range, 2 * kPiece), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemRelease.raw(handle), cuda::kSuccess);
}

TEST_F(Memory, PointersAreToldApart) {
  const auto& cuda = client.cuda;
  cuda::DevicePointer device = 0;
  ASSERT_EQ(cuda.cuMemAlloc.raw(&device, kPiece), cuda::kSuccess);
  void* host = nullptr;
  ASSERT_EQ(cuda.cuMemHostAlloc.raw(&host, 4096, 0), cuda::kSuccess);
  uint32_t type = 0;
  EXPECT_EQ(cuda.cuPointerGetAttribute.raw(&type, cuda::kPointerMemoryType, device + 5), cuda::kSuccess);
  EXPECT_EQ(type, cuda::kMemoryDevice);
  EXPECT_EQ(cuda.cuPointerGetAttribute.raw(&type, cuda::kPointerMemoryType, reinterpret_cast<uint64_t>(host)),
            cuda::kSuccess);
  EXPECT_EQ(type, cuda::kMemoryHost);
  EXPECT_EQ(cuda.cuPointerGetAttribute.raw(&type, cuda::kPointerMemoryType, reinterpret_cast<uint64_t>(&type)),
            cuda::kInvalidValue);
  EXPECT_EQ(cuda.cuMemFreeHost.raw(host), cuda::kSuccess);
  EXPECT_EQ(cuda.cuMemFree.raw(device), cuda::kSuccess);
}

TEST_F(Memory, RegisteredHostMemoryIsNotLocked) {
  const rlimit none{0, 0};
  rlimit before{};
  getrlimit(RLIMIT_MEMLOCK, &before);
  ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &none), 0);
  std::vector<char> host(1 << 20);
  EXPECT_EQ(client.cuda.cuMemHostRegister.raw(host.data(), host.size(), 0), cuda::kSuccess);
  EXPECT_EQ(client.cuda.cuMemHostRegister.raw(host.data() + 100, 1, 0), cuda::kHostMemoryAlreadyRegistered);
  EXPECT_EQ(client.cuda.cuMemHostUnregister.raw(host.data()), cuda::kSuccess);
  EXPECT_EQ(client.cuda.cuMemHostUnregister.raw(host.data()), cuda::kHostMemoryNotRegistered);
  const uint64_t nowhere = client.reserve(kPiece);
  client.cuda.cuMemAddressFree.raw(nowhere, kPiece);
  EXPECT_EQ(client.cuda.cuMemHostRegister.raw(reinterpret_cast<void*>(nowhere), 4096, 0), cuda::kInvalidValue)
      << "addresses without memory";
  setrlimit(RLIMIT_MEMLOCK, &before);
}

TEST_F(Memory, ThreadsMayAllocateAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      cuda::Context own = nullptr;
      client.cuda.cuDevicePrimaryCtxRetain.raw(&own, t % 2);
      client.cuda.cuCtxSetCurrent.raw(own);
      for (int round = 0; round < 50; ++round) {
        cuda::AllocationHandle handle = 0;
        ASSERT_EQ(client.create(t % 2, kPiece, &handle), cuda::kSuccess);
        char* memory = client.map(handle, kPiece);
        memory[round] = static_cast<char>(t);
        ASSERT_EQ(client.cuda.cuMemsetD8.raw(reinterpret_cast<uint64_t>(memory), 1, 4096), cuda::kSuccess);
        client.cuda.cuMemRelease.raw(handle);
        client.unmap(memory, kPiece);
      }
      client.cuda.cuDevicePrimaryCtxRelease.raw(t % 2);
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(used(1), 0U);
}

TEST_F(MemoryDeathTest, ReservedAddressesFault) {
  EXPECT_EXIT(touch([&] { *reinterpret_cast<volatile char*>(client.reserve(kPiece)) = 1; }),
              ::testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(MemoryDeathTest, UnmappedMemoryFaults) {
  EXPECT_EXIT(touch([&] {
                cuda::AllocationHandle handle = 0;
                if (client.create(0, kPiece, &handle) != cuda::kSuccess) _exit(3);
                volatile char* memory = client.map(handle, kPiece);
                memory[0] = 1;
                client.cuda.cuMemUnmap.raw(reinterpret_cast<uint64_t>(memory), kPiece);
                static_cast<void>(memory[0]);
              }),
              ::testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(MemoryDeathTest, WritingToMemoryMappedForReadingFaults) {
  EXPECT_EXIT(touch([&] {
                cuda::AllocationHandle handle = 0;
                if (client.create(0, kPiece, &handle) != cuda::kSuccess) _exit(3);
                const int fd = client.export_fd(handle);
                cuda::AllocationHandle imported = 0;
                if (client.import_fd(fd, &imported) != cuda::kSuccess) _exit(4);
                volatile char* memory = client.map(imported, kPiece, cuda::kAccessRead);
                if (memory[0] != 0) _exit(5);
                memory[0] = 1;
              }),
              ::testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace baton::test
