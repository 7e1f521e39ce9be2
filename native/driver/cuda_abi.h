// The part of the CUDA driver's binary interface that Baton uses, declared here so that no CUDA toolkit is needed.
// Sizes, offsets and values are NVIDIA's; the static_asserts pin the layouts that a driver reads and writes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::cuda {

using Device = int32_t;
using DevicePointer = unsigned long long;     // CUdeviceptr
using AllocationHandle = unsigned long long;  // CUmemGenericAllocationHandle
using Context = struct ContextOpaque*;
using Stream = struct StreamOpaque*;
using Event = struct EventOpaque*;
using Module = struct ModuleOpaque*;
using Function = struct FunctionOpaque*;

// CUresult. A driver may give values that are not named here.
enum Result : int32_t {
  kSuccess = 0,
#define BATON_CUDA_RESULT(constant, value, name, text) constant = value,
#include "native/driver/cuda_results.inc"
#undef BATON_CUDA_RESULT
};

enum DeviceAttribute : int32_t {
  kAttributeMaxThreadsPerBlock = 1,
  kAttributeWarpSize = 10,
  kAttributeMultiprocessorCount = 16,
  kAttributeIntegrated = 18,
  kAttributeCanMapHostMemory = 19,
  kAttributePciBusId = 33,
  kAttributePciDeviceId = 34,
  kAttributeAsyncEngineCount = 40,
  kAttributeUnifiedAddressing = 41,
  kAttributePciDomainId = 50,
  kAttributeComputeCapabilityMajor = 75,
  kAttributeComputeCapabilityMinor = 76,
  kAttributeHostRegisterSupported = 99,
  kAttributeVirtualMemoryManagementSupported = 102,
  kAttributeHandleTypePosixFileDescriptorSupported = 103,
};

enum AllocationType : int32_t { kAllocationTypePinned = 1 };
enum LocationType : int32_t { kLocationInvalid = 0, kLocationDevice = 1, kLocationHost = 2 };
enum HandleType : int32_t { kHandleNone = 0, kHandlePosixFileDescriptor = 1 };
enum AccessFlags : int32_t { kAccessNone = 0, kAccessRead = 1, kAccessReadWrite = 3 };
enum GranularityOption : int32_t { kGranularityMinimum = 0, kGranularityRecommended = 1 };
enum PointerAttribute : int32_t {
  kPointerContext = 1,
  kPointerMemoryType = 2,
  kPointerDevicePointer = 3,
  kPointerHostPointer = 4,
  kPointerDeviceOrdinal = 9,
  kPointerRangeStart = 11,
  kPointerRangeSize = 12,
  kPointerMapped = 13,
};
enum MemoryType : uint32_t { kMemoryHost = 1, kMemoryDevice = 2 };
enum FunctionAttribute : int32_t {
  kFunctionMaxThreadsPerBlock = 0,
  kFunctionSharedBytes = 1,
  kFunctionRegisters = 4,
  kFunctionMaxDynamicSharedBytes = 8,
};
enum P2PAttribute : int32_t { kP2PPerformanceRank = 1, kP2PAccessSupported = 2, kP2PNativeAtomics = 3 };
enum ProcAddressQueryResult : int32_t { kProcFound = 0, kProcNotFound = 1, kProcVersionTooLow = 2 };

inline constexpr unsigned kStreamDefault = 0;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventDefault = 0;
inline constexpr unsigned kEventBlockingSync = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostRegisterDeviceMap = 2;
inline constexpr unsigned kHostAllocPortable = 1;
inline constexpr unsigned kContextScheduleBlockingSync = 4;

struct MemoryLocation {
  LocationType type;
  int32_t id;
};
static_assert(sizeof(MemoryLocation) == 8);

struct AllocationProperties {
  AllocationType type;
  HandleType requested_handle_types;
  MemoryLocation location;
  void* win32_metadata;
  struct {
    uint8_t compression_type;
    uint8_t gpu_direct_rdma_capable;
    uint16_t usage;
    uint8_t reserved[4];
  } flags;
};
static_assert(sizeof(AllocationProperties) == 32);
static_assert(offsetof(AllocationProperties, location) == 8);
static_assert(offsetof(AllocationProperties, win32_metadata) == 16);
static_assert(offsetof(AllocationProperties, flags) == 24);

struct AccessDescriptor {
  MemoryLocation location;
  AccessFlags flags;
};
static_assert(sizeof(AccessDescriptor) == 12);
static_assert(offsetof(AccessDescriptor, flags) == 8);

struct Uuid {
  uint8_t bytes[16];
};
static_assert(sizeof(Uuid) == 16);

// Everything that crosses the boundary by value is a pointer, a 64-bit integer or a 32-bit integer.
static_assert(sizeof(DevicePointer) == 8 && sizeof(AllocationHandle) == 8 && sizeof(Stream) == 8);
static_assert(sizeof(Result) == 4 && sizeof(DeviceAttribute) == 4 && sizeof(HandleType) == 4);

using HostFunction = void (*)(void* user_data);

}  // namespace baton::cuda
