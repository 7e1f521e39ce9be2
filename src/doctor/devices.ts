/** The GPUs as NVML sees them, and the links between them. */
import { shortBytes } from "../report/figures.js";
import type { Facts, NvmlDevice, NvmlFacts, NvmlPair } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const gpus = findingsOf("gpus");
const links = findingsOf("links");

/** nvmlComputeMode_t. */
const COMPUTE_MODES: Readonly<Record<number, string>> = {
  1: "exclusive thread",
  2: "prohibited",
  3: "exclusive process",
};
/** nvmlGpuTopologyLevel_t, as `nvidia-smi topo -m` abbreviates it. */
const LEVELS: Readonly<Record<number, string>> = { 0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS" };
/** nvmlGpuP2PStatus_t. */
const P2P_STATUS: readonly string[] = [
  "works",
  "chipset does not support it",
  "GPU does not support it",
  "no path on this topology",
  "turned off by a registry key",
  "not supported",
  "unknown",
];

export function judgeNvml({
  gpus: kind,
  nvml,
  standin,
  host,
}: Pick<Facts, "gpus" | "nvml" | "standin" | "host">): Finding[] {
  const asked = kind === "real" ? nvml : standin?.nvml;
  if (asked === undefined) return [];
  if (asked.library === null) return [nvmlFailed(asked)];
  const { driverVersion, deviceCount } = asked.library;
  const name = kind === "real" ? "NVML" : "The stand-in's NVML";
  return [
    asked.end.how === "done"
      ? gpus.ok("NVML", `${name} answers for ${deviceCount} GPUs.`, `version ${driverVersion}`)
      : nvmlFailed(asked),
    ...asked.devices.flatMap((device) => judgeDevice(device, host.firstPidNamespace)),
  ];
}

function nvmlFailed({ error, end }: NvmlFacts): Finding {
  if (end.how === "missing") return gpus.unknown("NVML", "NVML could not be asked.", end.detail);
  return gpus.problem("NVML", {
    message: error === null ? "NVML hangs or crashes." : `NVML cannot be used: ${error.message}`,
    expected: "an answer: Baton measures the room on each GPU with it",
    found: error?.found ?? `${end.detail}${end.at === null ? "" : `, at: ${end.at}`}`,
    action: error?.action || "See whether `nvidia-smi` works; reset the GPU or reboot.",
  });
}

function judgeDevice(device: NvmlDevice, firstPidNamespace: boolean | null): Finding[] {
  const gpu = `GPU ${device.index}`;
  const findings: Finding[] = [memoryOf(device, gpu)];
  if (device.processError !== undefined) {
    findings.push(gpus.unknown("GPU_PROCESSES", `Who uses ${gpu} is not known.`, device.processError.message));
  } else if (device.processes !== undefined && device.processes.length > 0) {
    findings.push(
      gpus.warning("GPU_IN_USE", {
        message: `Other processes are on ${gpu}.`,
        expected: "a GPU of one's own: what they hold is missing for the engine or the training",
        found: device.processes.map(processWords).join(", "),
        action:
          firstPidNamespace === false
            ? "End them; their numbers may be those of the host, outside this container."
            : "End them, or count what they hold.",
      }),
    );
  }
  if (device.mig === true) {
    findings.push(
      gpus.problem("MIG", {
        message: `${gpu} is divided (MIG), and Baton cannot use parts of a GPU.`,
        expected: "MIG off",
        found: "MIG on",
        action: `nvidia-smi -i ${device.index} -mig 0 (as root, with nothing on the GPU)`,
      }),
    );
  }
  const mode = COMPUTE_MODES[device.computeMode ?? 0];
  if (mode !== undefined) {
    findings.push(
      gpus.problem("COMPUTE_MODE", {
        message: `${gpu} takes one process at most, and a rank and a worker share it.`,
        expected: "compute mode default",
        found: mode,
        action: `nvidia-smi -i ${device.index} -c DEFAULT (as root)`,
      }),
    );
  }
  return findings;
}

function memoryOf(device: NvmlDevice, gpu: string): Finding {
  const name = device.name ?? "of unknown name";
  if (device.totalBytes === undefined || device.usedBytes === undefined) {
    return gpus.problem("GPU_MEMORY", {
      message: `NVML does not tell the memory of ${gpu}.`,
      expected: "total and used bytes: without them no room can be measured",
      found: device.error?.message ?? "no figure",
      action: "See whether `nvidia-smi` shows it; virtual GPUs may not.",
    });
  }
  const used = `${shortBytes(device.usedBytes)} of ${shortBytes(device.totalBytes)} in use`;
  return gpus.ok("GPU_MEMORY", `${gpu} is ${name}.`, `${used}, ${device.uuid ?? "no UUID"}`);
}

const processWords = ({ pid, usedBytes }: { pid: number; usedBytes: number | null }): string =>
  `process ${pid} (${usedBytes === null ? "unknown" : shortBytes(usedBytes)})`;

export function judgeLinks({ gpus: kind, nvml, cuda }: Pick<Facts, "gpus" | "nvml" | "cuda">): Finding[] {
  if (kind !== "real") return [];
  return [...nvml.devices.map(pcie), ...nvlink(nvml), ...peers(nvml.pairs, cuda.peers)];
}

/** An idle GPU lowers its generation to save power; a width below the greatest is a card that sits badly. */
function pcie(device: NvmlDevice): Finding {
  const { pcieGeneration, pcieMaxGeneration, pcieWidth, pcieMaxWidth } = device;
  const gpu = `GPU ${device.index}`;
  if (pcieMaxGeneration === null || pcieMaxWidth === null || pcieWidth === null) {
    return links.unknown("PCIE", `The PCIe link of ${gpu} is not known.`, "NVML does not tell");
  }
  const found = `now generation ${pcieGeneration ?? "unknown"} x${pcieWidth}, at most ${pcieMaxGeneration} x${pcieMaxWidth}`;
  if (pcieWidth < pcieMaxWidth) {
    return links.warning("PCIE", {
      message: `The PCIe link of ${gpu} is narrower than it can be: release and return are slower by as much.`,
      expected: `x${pcieMaxWidth}`,
      found,
      action: "Check the slot, the riser and the BIOS; in a virtual machine the figure may be made up.",
    });
  }
  return links.ok("PCIE", `The PCIe link of ${gpu} has its full width.`, found);
}

function nvlink({ devices }: NvmlFacts): Finding[] {
  if (devices.length < 2) return [];
  const counts = devices.map(({ nvlinksActive }) => nvlinksActive);
  const found = counts.map((count, gpu) => `GPU ${gpu}: ${count ?? "unknown"}`).join(", ");
  if (counts.every((count) => count === null)) return [links.ok("NVLINK", "The GPUs have no NVLink.", found)];
  if (new Set(counts).size === 1 && counts[0] !== 0) {
    return [links.ok("NVLINK", `Every GPU has ${counts[0]} NVLinks up.`)];
  }
  return [
    links.warning("NVLINK", {
      message: "Not every GPU has the same number of NVLinks up.",
      expected: "as many on each",
      found,
      action: "See `nvidia-smi nvlink --status`; with NVSwitch the fabric manager must run.",
    }),
  ];
}

function peers(pairs: readonly NvmlPair[], access: Facts["cuda"]["peers"]): Finding[] {
  const how = (from: number, to: number): string => {
    const pair = pairs.find((each) => each.from === from && each.to === to);
    if (pair?.nvlinkStatus === 0) return "NVLink";
    return LEVELS[pair?.level ?? -1] ?? "unknown";
  };
  const words = (from: number, to: number): string => {
    const status = pairs.find((each) => each.from === from && each.to === to)?.readStatus ?? null;
    const why = status === null || status === 0 ? "" : `, ${P2P_STATUS[status] ?? `status ${status}`}`;
    return `${from} -> ${to} (${how(from, to)}${why})`;
  };
  const refused = access.filter((each) => each.access === false);
  const unknown = access.filter((each) => each.access === null);
  const findings: Finding[] = [];
  if (refused.length > 0) {
    findings.push(
      links.warning("PEER_ACCESS", {
        message: "GPUs cannot read each other's memory: ZeRO-3 and engines on several GPUs need it.",
        expected: "peer access between all pairs",
        found: refused.map(({ from, to }) => words(from, to)).join(", "),
        action: "Turn off ACS and the IOMMU for the GPUs, or use ZeRO-2 and tensorParallel 1.",
      }),
    );
  }
  if (unknown.length > 0) {
    findings.push(
      links.unknown(
        "PEER_ACCESS",
        "Peer access is not known.",
        unknown.map(({ from, to }) => words(from, to)).join(", "),
      ),
    );
  }
  if (refused.length === 0 && unknown.length === 0 && access.length > 0) {
    const kinds = new Map<string, number>();
    for (const { from, to } of access) kinds.set(how(from, to), (kinds.get(how(from, to)) ?? 0) + 1);
    const found = [...kinds].map(([kind, count]) => `${count} of ${access.length} by ${kind}`).join(", ");
    findings.push(links.ok("PEER_ACCESS", "Every GPU can read every other's memory.", found));
  }
  return findings;
}

/** One row a GPU: how it reaches the others. Empty where there is nothing to show. */
export function linkMatrix({ pairs, devices }: NvmlFacts, access: Facts["cuda"]["peers"]): string[][] {
  if (devices.length < 2) return [];
  const cell = (from: number, to: number): string => {
    if (from === to) return "-";
    const pair = pairs.find((each) => each.from === from && each.to === to);
    const peer = access.find((each) => each.from === from && each.to === to)?.access;
    const kind = pair?.nvlinkStatus === 0 ? "NVLink" : (LEVELS[pair?.level ?? -1] ?? "?");
    return peer === false ? `${kind}, no peer` : kind;
  };
  return devices.map(({ index }) => [`GPU ${index}`, ...devices.map((other) => cell(index, other.index))]);
}
