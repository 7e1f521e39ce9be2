#include "native/fakegpu/common/identity.h"

#include <cstdio>

namespace baton::standin {

std::string device_name() {
  return "Baton stand-in GPU";
}

std::array<uint8_t, 16> device_uuid(uint32_t index) {
  // "baton" in ASCII, then zeros with the version and variant bits of a UUID, then the index.
  std::array<uint8_t, 16> uuid{'b', 'a', 't', 'o', 'n', 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0};
  uuid[15] = static_cast<uint8_t>(index);
  return uuid;
}

std::string device_uuid_text(uint32_t index) {
  std::string text = "GPU";
  const auto uuid = device_uuid(index);
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    std::array<char, 3> hex{};
    std::snprintf(hex.data(), hex.size(), "%02x", uuid[i]);
    text += hex.data();
  }
  return text;
}

std::string pci_bus_id(uint32_t index, int domain_digits) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%0*x:%02X:00.0", domain_digits, 0, pci_bus(index));
  return text.data();
}

}  // namespace baton::standin
