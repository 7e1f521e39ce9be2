/** What can be wrong with GPUs, their driver and the environment: a name, what doctor must say, and the fact. */
import { FAILURE, GIB, type Trouble } from "./machine.js";

export const OF_GPUS: readonly Trouble[] = [
  [
    "expandable segments",
    "EXPANDABLE_SEGMENTS:problem",
    ({ host }) => {
      host.environment.PYTORCH_CUDA_ALLOC_CONF = "max_split_size_mb:64, expandable_segments: True";
    },
  ],
  [
    "expandable segments by torch's newer name",
    "EXPANDABLE_SEGMENTS:problem",
    ({ host }) => {
      host.environment.PYTORCH_ALLOC_CONF = "expandable_segments:true";
    },
  ],
  [
    "UUIDs in CUDA_VISIBLE_DEVICES",
    "BAD_DEVICES:problem",
    ({ host }) => {
      host.environment.CUDA_VISIBLE_DEVICES = "0,GPU-6261746f-6e00-8000-8000-000000000001";
    },
  ],
  [
    "no visible GPU",
    "NO_VISIBLE_DEVICES:problem",
    ({ host }) => {
      host.environment.CUDA_VISIBLE_DEVICES = "";
    },
  ],
  [
    "other GPUs than the first",
    "DEVICES_RENUMBERED:problem",
    ({ host }) => {
      host.environment.CUDA_VISIBLE_DEVICES = "2,3";
    },
  ],
  [
    "CUDA and NVML in different order",
    "DEVICES_RENUMBERED:problem",
    ({ cuda }) => {
      const [first, second] = cuda.devices;
      if (first && second) [first.uuid, second.uuid] = [second.uuid, first.uuid];
    },
  ],
  [
    "an architecture that DeepSpeed cannot read",
    "ARCH_LIST:warning",
    ({ host }) => {
      host.environment.TORCH_CUDA_ARCH_LIST = "8.0;9.0a";
    },
  ],
  [
    "NVLS left on",
    "NVLS:warning",
    ({ host }) => {
      delete host.environment.NCCL_NVLS_ENABLE;
    },
  ],
  [
    "DeepSpeed told to train on the CPU",
    "DS_ACCELERATOR:problem",
    ({ host }) => {
      host.environment.DS_ACCELERATOR = "cpu";
    },
  ],
  [
    "a long folder for temporary files",
    "SOCKET_PATH_TOO_LONG:problem",
    ({ host }) => {
      host.socketParent = `/${"x".repeat(90)}`;
    },
  ],
  [
    "a taken MASTER_PORT",
    "MASTER_PORT:warning",
    ({ host }) => {
      host.environment.MASTER_PORT = "29500";
      host.masterPortTaken = true;
    },
  ],
  [
    "a MASTER_PORT that is none",
    "MASTER_PORT:problem",
    ({ host }) => {
      host.environment.MASTER_PORT = "99999";
    },
  ],
  [
    "a rank's variables in the shell",
    "LAUNCHER_VARIABLES:warning",
    ({ host }) => {
      host.environment.RANK = "0";
    },
  ],
  [
    "a driver older than torch's CUDA",
    "DRIVER_TOO_OLD:problem",
    ({ cuda }) => {
      if (cuda.driver) cuda.driver.version = 12_080;
    },
  ],
  [
    "a driver of CUDA 11",
    "DRIVER_TOO_OLD:problem",
    ({ cuda, python }) => {
      if (cuda.driver) cuda.driver.version = 11_080;
      if (python) python.torchCuda = null;
    },
  ],
  [
    "a driver that hangs",
    "DRIVER:problem",
    (facts) => {
      facts.cuda = { ...facts.cuda, driver: null, devices: [], peers: [], contexts: [], roundTrips: [] };
      facts.cuda.end = { how: "deadline", at: "cuInit", detail: "no end after 40 s" };
    },
  ],
  [
    "GPUs without memory that can be exported",
    "NO_VMM:problem",
    ({ cuda }) => {
      if (cuda.devices[1]) cuda.devices[1].fdExport = false;
    },
  ],
  [
    "GPUs without bfloat16",
    "OLD_GPU:warning",
    ({ cuda }) => {
      for (const device of cuda.devices) device.major = 7;
    },
  ],
  [
    "a GPU without room for a context",
    "NO_CONTEXT:problem",
    ({ cuda }) => {
      if (cuda.contexts[1]) cuda.contexts[1].error = FAILURE;
    },
  ],
  [
    "export of memory forbidden",
    "VMM_ROUND_TRIP:problem",
    ({ cuda }) => {
      Object.assign(cuda.roundTrips[0] ?? {}, { stage: "export", error: FAILURE });
    },
  ],
  [
    "a GPU that another cannot read",
    "VMM_ACROSS:warning",
    ({ cuda }) => {
      Object.assign(cuda.roundTrips[1] ?? {}, { stage: "import", error: FAILURE });
    },
  ],
  [
    "a driver that crashes during the trials",
    "VMM_ROUND_TRIP:problem",
    ({ cuda }) => {
      cuda.end = { how: "crash", at: "context of GPU 1", detail: "ended by SIGSEGV" };
    },
  ],
  [
    "64 KiB of locked memory that count",
    "MEMLOCK:problem",
    ({ cuda, host }) => {
      host.limits.lockedBytes = 65_536;
      if (cuda.register) cuda.register.error = FAILURE;
    },
  ],
  [
    "a limit of locked memory above what was tried",
    "MEMLOCK:warning",
    ({ host }) => {
      host.limits.lockedBytes = 8 * GIB;
    },
  ],
  [
    "a limit of locked memory that could not be tried",
    "MEMLOCK:unknown",
    ({ cuda, host }) => {
      host.limits.lockedBytes = 65_536;
      cuda.register = null;
    },
  ],
  [
    "NVML that does not start",
    "NVML:problem",
    (facts) => {
      facts.nvml = { ...facts.nvml, library: null, error: FAILURE, devices: [], pairs: [] };
    },
  ],
  [
    "a GPU whose memory is not told",
    "GPU_MEMORY:problem",
    ({ nvml }) => {
      delete nvml.devices[0]?.totalBytes;
    },
  ],
  [
    "other processes on a GPU",
    "GPU_IN_USE:warning",
    ({ nvml }) => {
      nvml.devices[0]?.processes?.push({ pid: 17, usedBytes: null });
    },
  ],
  [
    "unknown processes",
    "GPU_PROCESSES:unknown",
    ({ nvml }) => {
      if (nvml.devices[0]) nvml.devices[0].processError = FAILURE;
    },
  ],
  [
    "MIG",
    "MIG:problem",
    ({ nvml }) => {
      if (nvml.devices[1]) nvml.devices[1].mig = true;
    },
  ],
  [
    "compute mode exclusive process",
    "COMPUTE_MODE:problem",
    ({ nvml }) => {
      if (nvml.devices[0]) nvml.devices[0].computeMode = 3;
    },
  ],
  [
    "a narrow PCIe link",
    "PCIE:warning",
    ({ nvml }) => {
      if (nvml.devices[0]) nvml.devices[0].pcieWidth = 8;
    },
  ],
  [
    "an unknown PCIe link",
    "PCIE:unknown",
    ({ nvml }) => {
      if (nvml.devices[0]) nvml.devices[0].pcieWidth = null;
    },
  ],
  [
    "NVLinks that are down",
    "NVLINK:warning",
    ({ nvml }) => {
      if (nvml.devices[0]) nvml.devices[0].nvlinksActive = 17;
    },
  ],
  [
    "no peer access",
    "PEER_ACCESS:warning",
    ({ cuda }) => {
      if (cuda.peers[0]) cuda.peers[0].access = false;
    },
  ],
  [
    "unknown peer access",
    "PEER_ACCESS:unknown",
    ({ cuda }) => {
      if (cuda.peers[0]) cuda.peers[0].access = null;
    },
  ],
];
