#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>

#include "native/copy/gpu.h"
#include "native/probe/json.h"
#include "native/probe/probes.h"
#include "native/probe/round_trip.h"
#include "native/system/descriptor.h"

namespace baton::probe {
namespace {

using cuda::CudaDriver;

std::optional<int> attribute(const CudaDriver& driver, cuda::DeviceAttribute which, cuda::Device device) {
  int value = 0;
  if (!driver.cuDeviceGetAttribute || driver.cuDeviceGetAttribute.raw(&value, which, device) != cuda::kSuccess) {
    return std::nullopt;
  }
  return value;
}

std::optional<bool> flag(const CudaDriver& driver, cuda::DeviceAttribute which, cuda::Device device) {
  const auto value = attribute(driver, which, device);
  if (!value) return std::nullopt;
  return *value != 0;
}

std::optional<std::string> uuid(const CudaDriver& driver, cuda::Device device) {
  cuda::Uuid bytes{};
  if (!driver.cuDeviceGetUuid || driver.cuDeviceGetUuid.raw(&bytes, device) != cuda::kSuccess) return std::nullopt;
  std::string text = "GPU";
  for (size_t i = 0; i < sizeof(bytes.bytes); ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    std::array<char, 3> hex{};
    std::snprintf(hex.data(), hex.size(), "%02x", bytes.bytes[i]);
    text += hex.data();
  }
  return text;
}

void describe_device(const CudaDriver& driver, int32_t ordinal) {
  cuda::Device device = 0;
  Json json;
  json.add("ordinal", ordinal);
  if (const Status got = driver.cuDeviceGet(&device, ordinal); !got) {
    say(Json().add("device", json.add("error", got.error())));
    return;
  }
  json.add("uuid", uuid(driver, device));
  json.add("major", attribute(driver, cuda::kAttributeComputeCapabilityMajor, device));
  json.add("minor", attribute(driver, cuda::kAttributeComputeCapabilityMinor, device));
  json.add("vmm", flag(driver, cuda::kAttributeVirtualMemoryManagementSupported, device));
  json.add("fdExport", flag(driver, cuda::kAttributeHandleTypePosixFileDescriptorSupported, device));
  say(Json().add("device", json));
}

void describe_peers(const CudaDriver& driver) {
  for (int32_t from = 0; from < driver.device_count(); ++from) {
    for (int32_t to = 0; to < driver.device_count(); ++to) {
      if (from == to) continue;
      std::optional<bool> access;
      int can = 0;
      if (driver.cuDeviceCanAccessPeer && driver.cuDeviceCanAccessPeer.raw(&can, from, to) == cuda::kSuccess) {
        access = can != 0;
      }
      say(Json().add("peer", Json().add("from", from).add("to", to).add("access", access)));
    }
  }
}

// As an arena is pinned: a memfd, mapped shared, registered for all GPUs.
Status register_host_memory(const Gpu& gpu, uint64_t bytes) {
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  const auto host_error = [bytes](const char* what) {
    return Error{.code = "NO_HOST_MEMORY",
                 .message = std::string("Host memory for the trial cannot be had: ") + what + ".",
                 .expected = std::to_string(bytes) + " bytes",
                 .found = "none",
                 .action = "Free host memory.",
                 .driver_result = {}};
  };
  const Descriptor file(::memfd_create("baton-probe", MFD_CLOEXEC));
  if (!file || ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return host_error("memfd");
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (memory == MAP_FAILED) return host_error("mmap");
  Status status = gpu.driver().cuMemHostRegister(memory, bytes, cuda::kHostRegisterPortable);
  if (status) status = gpu.driver().cuMemHostUnregister(memory);
  ::munmap(memory, bytes);
  return status;
}

// `to`: the GPU that reads, in the other process.
void try_round_trip(const Gpu& gpu, int32_t to) {
  at("memory of GPU " + std::to_string(gpu.ordinal()) + ", read on GPU " + std::to_string(to) + " by another process");
  const RoundTrip trip = round_trip(gpu, to);
  Json json;
  json.add("from", gpu.ordinal()).add("to", to).add("bytes", trip.bytes).add("stage", trip.stage);
  if (!trip.status) json.add("error", trip.status.error());
  say(Json().add("roundTrip", json));
}

void try_device(const CudaDriver& driver, int32_t ordinal) {
  at("context of GPU " + std::to_string(ordinal));
  const auto found = Gpu::get(ordinal);
  if (!found) {
    say(Json().add("context", Json().add("ordinal", ordinal).add("error", found.error())));
    return;
  }
  const Gpu& gpu = **found;
  say(Json().add("context", Json().add("ordinal", ordinal)));
  try_round_trip(gpu, ordinal);
  if (driver.device_count() > 1) try_round_trip(gpu, (ordinal + 1) % driver.device_count());
}

}  // namespace

void probe_cuda(uint64_t register_bytes) {
  at("cuInit");
  const auto instance = CudaDriver::instance();
  if (!instance) {
    say(Json().add("cuda", Json().add("error", instance.error())));
    return;
  }
  const CudaDriver& driver = **instance;
  say(Json().add("cuda", Json()
                             .add("path", driver.path())
                             .add("simulated", driver.simulated())
                             .add("version", driver.driver_version())
                             .add("deviceCount", driver.device_count())));
  at("attributes of the GPUs");
  for (int32_t ordinal = 0; ordinal < driver.device_count(); ++ordinal)
    describe_device(driver, ordinal);
  describe_peers(driver);
  for (int32_t ordinal = 0; ordinal < driver.device_count(); ++ordinal)
    try_device(driver, ordinal);
  at("pinning host memory");
  if (const auto gpu = Gpu::get(0); gpu) {
    const Status registered = register_host_memory(**gpu, register_bytes);
    Json json;
    json.add("bytes", register_bytes);
    if (!registered) json.add("error", registered.error());
    say(Json().add("register", json));
  }
  say(Json().add("done", true));
}

}  // namespace baton::probe
