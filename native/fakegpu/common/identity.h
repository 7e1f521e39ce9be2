// How a stand-in GPU introduces itself; the same through CUDA and through NVML.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace baton::standin {

inline constexpr char kDriverVersionText[] = "580.0.standin";
inline constexpr int32_t kCudaVersion = 13000;

std::string device_name();
// 16 bytes, fixed for each index.
std::array<uint8_t, 16> device_uuid(uint32_t index);
// "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
std::string device_uuid_text(uint32_t index);
// NVML's form "00000000:01:00.0" has 8 digits of domain, CUDA's "0000:01:00.0" has 4.
std::string pci_bus_id(uint32_t index, int domain_digits);
inline constexpr uint32_t pci_bus(uint32_t index) {
  return index + 1;
}

}  // namespace baton::standin
