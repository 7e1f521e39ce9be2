#include "native/driver/nvml.h"

#include <string>
#include <vector>

#include "native/probe/json.h"
#include "native/probe/probes.h"

namespace baton::probe {
namespace {

using nvml::Device;
using nvml::Nvml;

// The figure that a function writes, or unknown when the driver lacks it or refuses.
template <class T, class Function, class... Arguments>
std::optional<T> ask(const Function& function, Arguments... arguments) {
  T value{};
  if (!function || function.raw(arguments..., &value) != nvml::kSuccess) return std::nullopt;
  return value;
}

std::optional<std::string> bus_id(const Nvml& nvml, Device device) {
  const auto info = ask<nvml::PciInfo>(nvml.nvmlDeviceGetPciInfo, device);
  if (!info) return std::nullopt;
  return std::string(info->bus_id);
}

// Links that are up; unknown where a GPU has none to ask about.
std::optional<unsigned> active_links(const Nvml& nvml, Device device) {
  std::optional<unsigned> active;
  for (unsigned link = 0; link < nvml::kMostNvLinks; ++link) {
    const auto state = ask<int>(nvml.nvmlDeviceGetNvLinkState, device, link);
    if (state) active = active.value_or(0) + (*state == nvml::kEnabled ? 1 : 0);
  }
  return active;
}

std::optional<bool> mig_enabled(const Nvml& nvml, Device device) {
  unsigned now = 0;
  unsigned pending = 0;
  const auto& function = nvml.nvmlDeviceGetMigMode;
  if (!function || function.raw(device, &now, &pending) != nvml::kSuccess) return std::nullopt;
  return now == nvml::kEnabled;
}

std::optional<std::string> text_of(const Result<std::string>& text) {
  if (!text) return std::nullopt;
  return *text;
}

Json memory_of(const Nvml& nvml, uint32_t index, Json device) {
  const auto memory = nvml.memory(index);
  if (!memory) return device.add("error", memory.error());
  device.add("totalBytes", memory->total_bytes).add("usedBytes", memory->used_bytes);
  const auto processes = nvml.processes(index);
  if (!processes) return device.add("processError", processes.error());
  std::vector<Json> list;
  for (const auto& process : *processes)
    list.push_back(Json().add("pid", process.pid).add("usedBytes", process.used_bytes));
  return device.add("processes", list);
}

Json device_of(const Nvml& nvml, uint32_t index, Device device) {
  Json json;
  json.add("index", index).add("name", text_of(nvml.name(index))).add("uuid", text_of(nvml.uuid(index)));
  json.add("busId", bus_id(nvml, device));
  json.add("pcieGeneration", ask<unsigned>(nvml.nvmlDeviceGetCurrPcieLinkGeneration, device));
  json.add("pcieMaxGeneration", ask<unsigned>(nvml.nvmlDeviceGetMaxPcieLinkGeneration, device));
  json.add("pcieWidth", ask<unsigned>(nvml.nvmlDeviceGetCurrPcieLinkWidth, device));
  json.add("pcieMaxWidth", ask<unsigned>(nvml.nvmlDeviceGetMaxPcieLinkWidth, device));
  json.add("nvlinksActive", active_links(nvml, device));
  json.add("mig", mig_enabled(nvml, device));
  json.add("computeMode", ask<int>(nvml.nvmlDeviceGetComputeMode, device));
  json.add("persistence", ask<int>(nvml.nvmlDeviceGetPersistenceMode, device));
  return memory_of(nvml, index, json);
}

Json pair_of(const Nvml& nvml, uint32_t from, Device device, uint32_t to, Device other) {
  Json json;
  json.add("from", from).add("to", to);
  json.add("level", ask<int>(nvml.nvmlDeviceGetTopologyCommonAncestor, device, other));
  json.add("readStatus", ask<int>(nvml.nvmlDeviceGetP2PStatus, device, other, nvml::kP2PCapabilityRead));
  json.add("nvlinkStatus", ask<int>(nvml.nvmlDeviceGetP2PStatus, device, other, nvml::kP2PCapabilityNvlink));
  return json;
}

}  // namespace

void probe_nvml() {
  at("opening NVML");
  const auto opened = Nvml::open();
  if (!opened) {
    say(Json().add("nvml", Json().add("error", opened.error())));
    return;
  }
  const Nvml& nvml = **opened;
  say(Json().add("nvml", Json()
                             .add("path", nvml.path())
                             .add("simulated", nvml.simulated())
                             .add("driverVersion", nvml.driver_version())
                             .add("cudaVersion", ask<int>(nvml.nvmlSystemGetCudaDriverVersion))
                             .add("deviceCount", nvml.device_count())));
  std::vector<Device> devices;
  for (uint32_t index = 0; index < nvml.device_count(); ++index) {
    at("NVML of GPU " + std::to_string(index));
    const auto device = nvml.device(index);
    if (!device) continue;
    devices.push_back(*device);
    say(Json().add("device", device_of(nvml, index, *device)));
  }
  at("links between the GPUs");
  for (uint32_t from = 0; from < devices.size(); ++from) {
    for (uint32_t to = 0; to < devices.size(); ++to) {
      if (from != to) say(Json().add("pair", pair_of(nvml, from, devices[from], to, devices[to])));
    }
  }
  say(Json().add("done", true));
}

}  // namespace baton::probe
