/** What doctor says of machines that nobody here has: each spoiled in one place. */
import { describe, expect, it } from "vitest";
import type { Facts } from "../../../src/doctor/facts.js";
import { exitCodeOf } from "../../../src/doctor/finding.js";
import { judge } from "../../../src/doctor/judge.js";
import { FAILURE, found, GIB, type Mutable, machine, troubles, withoutGpu } from "./machine.js";

type Spoil = (facts: Mutable<Facts>) => void;

describe("a machine on which all is well", () => {
  it("has no finding but good ones, with GPUs and without", () => {
    expect(troubles(machine())).toEqual([]);
    expect(troubles(withoutGpu())).toEqual([]);
    expect(exitCodeOf(judge(machine(), null))).toBe(0);
  });

  it("has no code twice for one thing", () => {
    const findings = judge(machine(), null);
    const keys = findings.map(({ code, message }) => `${code} ${message}`);
    expect(new Set(keys).size).toBe(keys.length);
  });
});

/** One thing is wrong, and exactly that is said. */
const cases: readonly (readonly [string, string, Spoil])[] = [
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
  [
    "unknown host memory",
    "HOST_MEMORY:unknown",
    ({ host }) => {
      host.memory = null;
    },
  ],
  [
    "a control group with less than the host has",
    "CGROUP_MEMORY:warning",
    ({ host }) => {
      host.cgroups.unshift({ version: 2, path: "/job", limitBytes: 64 * GIB, usedBytes: GIB, reclaimableBytes: 0 });
    },
  ],
  [
    "a control group that cannot be read",
    "CGROUP_MEMORY:unknown",
    ({ host }) => {
      host.cgroups = [];
    },
  ],
  [
    "docker's 64 MiB of shared memory",
    "SHARED_MEMORY:problem",
    ({ host }) => {
      if (host.sharedMemory) host.sharedMemory.freeBytes = 64 * 2 ** 20;
    },
  ],
  [
    "shared memory for a few ranks",
    "SHARED_MEMORY:warning",
    ({ host }) => {
      if (host.sharedMemory) host.sharedMemory.freeBytes = 200 * 2 ** 20;
    },
  ],
  [
    "no shared memory",
    "SHARED_MEMORY:problem",
    ({ host }) => {
      host.sharedMemory = null;
    },
  ],
  [
    "files of killed runs",
    "LEFT_FILES:warning",
    ({ host }) => {
      host.sharedMemory?.left.push("baton-0123.standin");
    },
  ],
  [
    "few open files",
    "OPEN_FILES:warning",
    ({ host }) => {
      host.limits.openFiles = 1024;
    },
  ],
  [
    "hardly any open files",
    "OPEN_FILES:problem",
    ({ host }) => {
      host.limits.openFiles = 128;
    },
  ],
  [
    "a limited address space",
    "ADDRESS_SPACE:problem",
    ({ host }) => {
      host.limits.addressSpaceBytes = 64 * GIB;
    },
  ],
  [
    "strict overcommit",
    "OVERCOMMIT:warning",
    ({ host }) => {
      host.overcommit = 2;
    },
  ],
  [
    "no pidfd",
    "PIDFD:problem",
    ({ host }) => {
      host.pidfdError = FAILURE;
    },
  ],
  [
    "an old Node.js",
    "NODE_VERSION:problem",
    ({ software }) => {
      software.node = "20.16.0";
    },
  ],
  [
    "an addon of another version",
    "ADDON_VERSION:problem",
    ({ software }) => {
      software.addon = "0.0.9";
    },
  ],
  [
    "an addon that does not load",
    "ADDON_NOT_LOADED:problem",
    ({ software }) => {
      software.addon = { ...FAILURE, code: "ADDON_NOT_LOADED" };
    },
  ],
  [
    "an old Python",
    "PYTHON_VERSION:problem",
    ({ python }) => {
      if (python) python.version = [3, 9];
    },
  ],
  [
    "a new Python",
    "PYTHON_VERSION:warning",
    ({ python }) => {
      if (python) python.version = [3, 13];
    },
  ],
  [
    "no Python",
    "PYTHON_MISSING:problem",
    ({ python }) => {
      if (python) python.path = null;
    },
  ],
  [
    "a Python that does not answer",
    "PYTHON_MISSING:unknown",
    (facts) => {
      facts.python = null;
    },
  ],
  [
    "a needed package missing",
    "PYTHON_PACKAGE_MISSING:problem",
    ({ python }) => {
      delete python?.packages.msgspec;
    },
  ],
  [
    "no DeepSpeed",
    "DEEPSPEED_MISSING:warning",
    ({ python }) => {
      delete python?.packages.deepspeed;
    },
  ],
  [
    "another DeepSpeed",
    "DEEPSPEED_VERSION:warning",
    ({ python }) => {
      if (python) python.packages.deepspeed = "0.20.1";
    },
  ],
  [
    "no vLLM",
    "VLLM_MISSING:warning",
    ({ python }) => {
      delete python?.packages.vllm;
    },
  ],
  [
    "a newer vLLM",
    "VLLM_VERSION:problem",
    ({ python }) => {
      if (python) python.packages.vllm = "0.27.0";
    },
  ],
  [
    "an older transformers",
    "TRANSFORMERS_VERSION:warning",
    ({ python }) => {
      if (python) python.packages.transformers = "4.57.1";
    },
  ],
  [
    "a vLLM without its version",
    "VLLM_VERSION:unknown",
    ({ python }) => {
      if (python) python.packages.vllm = "unknown";
    },
  ],
  [
    "a torch without CUDA",
    "UNSUPPORTED_DEVICE:problem",
    ({ python }) => {
      if (python) Object.assign(python, { torchCuda: null, torchIsCudaBuild: false });
    },
  ],
  [
    "no compiler",
    "NO_COMPILER:warning",
    ({ tools }) => {
      tools.compiler = null;
    },
  ],
  [
    "no nvcc",
    "NVCC:warning",
    ({ tools }) => {
      tools.nvccRelease = null;
    },
  ],
  [
    "an nvcc of another version",
    "NVCC:warning",
    ({ tools }) => {
      tools.nvccRelease = "13.1";
    },
  ],
  [
    "no ninja",
    "NINJA:warning",
    ({ python }) => {
      delete python?.packages.ninja;
    },
  ],
];

describe("on real GPUs, doctor finds", () => {
  it.each(cases)("%s", (_, expected, spoil) => {
    expect(troubles(machine(spoil))).toEqual([expected]);
  });

  it("for each trouble what was found, and what to do", () => {
    for (const [, , spoil] of cases) {
      for (const finding of judge(machine(spoil), null)) {
        if (finding.verdict === "ok") continue;
        expect(finding.found, finding.code).not.toBe("");
        if (finding.verdict === "unknown") continue;
        if (finding.code !== "ADDON_NOT_LOADED") expect(finding.action, finding.code).not.toBe("");
      }
    }
  });

  it("a torch that vLLM was not built for", () => {
    const facts = machine(({ python }) => {
      if (python) python.packages.torch = "2.13.0";
    });
    expect(troubles(facts)).toEqual(["TORCH_VERSION:warning", "TORCH_AND_VLLM:problem"]);
  });

  it("that an exit code of 1 means a problem, and a warning alone does not", () => {
    for (const [name, expected, spoil] of cases) {
      expect(exitCodeOf(judge(machine(spoil), null)), name).toBe(expected.endsWith(":problem") ? 1 : 0);
    }
  });
});

describe("without a GPU", () => {
  it("says that stand-ins would be used, and that they were tried", () => {
    const [driver] = found(withoutGpu(), "DRIVER");
    expect(driver).toMatchObject({ verdict: "ok", message: expect.stringContaining("stand-in GPUs (simulated)") });
    expect(found(withoutGpu(), "VMM_ROUND_TRIP", "ok")).toHaveLength(1);
  });

  it("settings of real GPUs are warnings, and small locked memory is none", () => {
    const facts = withoutGpu(({ host }) => {
      host.environment.PYTORCH_CUDA_ALLOC_CONF = "expandable_segments:True";
      host.environment.CUDA_VISIBLE_DEVICES = "GPU-1";
      host.limits.lockedBytes = 65_536;
    });
    expect(troubles(facts)).toEqual(["EXPANDABLE_SEGMENTS:warning", "BAD_DEVICES:warning"]);
  });

  it.each<readonly [string, string, Spoil]>([
    [
      "stand-ins that do not export",
      "VMM_ROUND_TRIP:problem",
      ({ standin }) => {
        Object.assign(standin?.cuda.roundTrips[0] ?? {}, { stage: "export", error: FAILURE });
      },
    ],
    [
      "stand-ins that do not load",
      "STANDIN:problem",
      ({ standin }) => {
        if (standin) Object.assign(standin.cuda, { driver: null, error: FAILURE });
      },
    ],
    [
      "another driver in the stand-in's place",
      "STANDIN:problem",
      ({ standin }) => {
        if (standin?.cuda.driver) standin.cuda.driver.simulated = false;
      },
    ],
    [
      "no compiler for the allocator",
      "NO_COMPILER:problem",
      ({ tools }) => {
        if (tools.compiler) tools.compiler.cxx20 = false;
      },
    ],
    [
      "device files of a driver that does not work",
      "DRIVER:problem",
      ({ host }) => {
        host.deviceFile = true;
      },
    ],
    [
      "a probe that is not installed",
      "DRIVER:unknown",
      ({ cuda, nvml }) => {
        const end = { how: "missing", at: null, detail: "no such file" } as const;
        Object.assign(cuda, { end, error: null });
        Object.assign(nvml, { end, error: null });
      },
    ],
  ])("finds %s", (_, expected, spoil) => {
    expect(troubles(withoutGpu(spoil))).toEqual([expected]);
  });

  it("does not miss vLLM, which needs a GPU", () => {
    const facts = withoutGpu(({ python }) => {
      delete python?.packages.vllm;
    });
    expect(troubles(facts)).toEqual([]);
  });
});
