/** The CUDA driver, and what Baton needs of it: memory that can be unmapped, exported and read by another process. */

import { shortBytes } from "../report/figures.js";
import type { CudaFacts, Facts, ProbeEnd, RoundTrip } from "./facts.js";
import { type Finding, findingsOf } from "./finding.js";

const { ok, warning, problem, unknown } = findingsOf("gpus");

/** The driver of CUDA 12 (525). What Baton calls is older; torch and vLLM are not. */
const OLDEST_CUDA = 12_000;
const UPDATE = "Update the NVIDIA driver (580 or newer has CUDA 13).";

type Given = Pick<Facts, "gpus" | "cuda" | "nvml" | "standin" | "host" | "python">;

export function judgeDriver(facts: Given): Finding[] {
  if (facts.gpus === "real") return judgeReal(facts);
  return [whyStandins(facts), ...(facts.standin === null ? [] : judgeStandin(facts.standin.cuda))];
}

function whyStandins({ cuda, nvml, host }: Given): Finding {
  // A library that is there and refuses says more than one that is not.
  const error = nvml.error?.code === "DRIVER_INIT_FAILED" ? nvml.error : (cuda.error ?? nvml.error);
  if (error === null && cuda.end.how === "missing") return notAsked(cuda);
  const reason = error === null ? endWords(cuda.end) || "NVML shows no GPU" : `${error.message} ${error.found}`;
  if (host.deviceFile) {
    return problem("DRIVER", {
      message: "This machine has NVIDIA's device files, and its driver cannot be used.",
      expected: "libcuda.so.1 and libnvidia-ml.so.1 of the driver that is loaded",
      found: reason,
      action: "In a container, start it with the GPUs (docker: --gpus all); else install the libraries of this driver.",
    });
  }
  return ok("DRIVER", "There is no NVIDIA GPU here: a run uses stand-in GPUs (simulated).", reason);
}

const notAsked = ({ end }: CudaFacts): Finding =>
  unknown("DRIVER", "The drivers could not be asked.", end.detail, "Install gpu-baton again, or run `npm run build`.");

function judgeStandin(cuda: CudaFacts): Finding[] {
  if (cuda.driver === null && cuda.error === null && cuda.end.how === "missing") {
    return [unknown("STANDIN", "The stand-in GPUs could not be tried.", cuda.end.detail)];
  }
  if (cuda.driver === null) {
    return [
      problem("STANDIN", {
        message: "The stand-in GPUs do not work.",
        expected: "Baton's own libcuda.so.1, loaded and initialised",
        found: cuda.error === null ? endWords(cuda.end) : `${cuda.error.message} ${cuda.error.found}`,
        action: "Run `npm run build` in a checkout, or install gpu-baton again.",
      }),
    ];
  }
  if (!cuda.driver.simulated) {
    return [
      problem("STANDIN", {
        message: "Another libcuda.so.1 stands before the stand-in's.",
        expected: "Baton's own libcuda.so.1",
        found: cuda.driver.path,
        action: "unset BATON_CUDA_LIBRARY and LD_PRELOAD",
      }),
    ];
  }
  return judgeTrials(cuda, "stand-in GPU");
}

function judgeReal(facts: Given): Finding[] {
  const { cuda } = facts;
  if (cuda.driver === null) return [driverFailed(cuda)];
  const { path, version, deviceCount, simulated } = cuda.driver;
  const driverVersion = facts.nvml.library?.driverVersion ?? "of unknown version";
  if (simulated) {
    return [
      problem("DRIVER", {
        message: "NVML is the driver's, and libcuda.so.1 is Baton's stand-in.",
        expected: "both of the driver",
        found: path,
        action: "unset BATON_CUDA_LIBRARY, and take the stand-ins out of LD_LIBRARY_PATH.",
      }),
    ];
  }
  const found = `driver ${driverVersion}, CUDA ${cudaWords(version)}, ${path}`;
  return [
    ageOf(version, facts.python?.torchCuda ?? null, found),
    ...(deviceCount === 0 ? [noDevices(found)] : []),
    ...sameOrder(facts),
    ...capability(cuda),
    ...judgeTrials(cuda, "GPU"),
  ];
}

/** It could not be opened, or its probe came to a bad end. */
function driverFailed(cuda: CudaFacts): Finding {
  if (cuda.error !== null) {
    return problem("DRIVER", {
      message: `The CUDA driver cannot be used: ${cuda.error.message}`,
      expected: cuda.error.expected,
      found: cuda.error.found,
      action: cuda.error.action,
    });
  }
  if (cuda.end.how === "missing") return notAsked(cuda);
  return problem("DRIVER", {
    message: cuda.end.how === "deadline" ? "The CUDA driver hangs." : "The CUDA driver crashes whoever calls it.",
    expected: "an answer",
    found: endWords(cuda.end),
    action: "Look for Xid in the kernel log (dmesg), end what holds the GPUs, and reset them or reboot.",
  });
}

function noDevices(found: string): Finding {
  return problem("NO_VISIBLE_DEVICES", {
    message: "The CUDA driver shows no GPU.",
    expected: "at least one",
    found,
    action: "Check CUDA_VISIBLE_DEVICES, and whether the container was given GPUs.",
  });
}

function ageOf(version: number, torchCuda: string | null, found: string): Finding {
  const major = Math.floor(version / 1000);
  const torchMajor = torchCuda === null ? null : Number.parseInt(torchCuda, 10);
  if (version < OLDEST_CUDA || (torchMajor !== null && torchMajor > major)) {
    return problem("DRIVER_TOO_OLD", {
      message: "The CUDA driver is too old.",
      expected: `CUDA ${Math.max(OLDEST_CUDA / 1000, torchMajor ?? 0)}${torchMajor === null ? "" : `, as torch has (${torchCuda})`}`,
      found,
      action: UPDATE,
    });
  }
  if (torchMajor === null && version < 13_000) {
    return warning("DRIVER_TOO_OLD", {
      message: "The usual builds of torch 2.11 and vLLM need a newer CUDA driver.",
      expected: "CUDA 13, or builds for CUDA 12",
      found,
      action: UPDATE,
    });
  }
  return ok("DRIVER_TOO_OLD", "The CUDA driver is new enough.", found);
}

/** Baton measures GPU n of NVML for rank n, which computes on GPU n of CUDA. */
function sameOrder({ cuda, nvml }: Given): Finding[] {
  const uuids = nvml.devices.map(({ uuid }) => uuid);
  const known = cuda.devices.filter(({ uuid }) => uuid !== null);
  if (known.length === 0 || uuids.every((uuid) => uuid === null)) return [];
  const other = known.find(({ ordinal, uuid }) => uuids[ordinal] !== uuid);
  if (other === undefined) return [ok("DEVICES_RENUMBERED", "CUDA and NVML number the GPUs alike.")];
  return [
    problem("DEVICES_RENUMBERED", {
      message: "CUDA and NVML number the GPUs differently: the room would be measured on the wrong one.",
      expected: `NVML's GPU ${other.ordinal} (${uuids[other.ordinal] ?? "none"})`,
      found: `CUDA's GPU ${other.ordinal} is ${other.uuid}`,
      action: "export CUDA_DEVICE_ORDER=PCI_BUS_ID, and leave CUDA_VISIBLE_DEVICES alone.",
    }),
  ];
}

function capability({ devices }: CudaFacts): Finding[] {
  const list = (some: CudaFacts["devices"]): string => some.map(({ ordinal }) => `GPU ${ordinal}`).join(", ");
  const without = devices.filter(({ vmm, fdExport }) => vmm === false || fdExport === false);
  if (without.length > 0) {
    return [
      problem("NO_VMM", {
        message: "GPUs have no memory that can be unmapped and exported.",
        expected: "CUDA virtual memory management, with POSIX descriptors",
        found: `not on ${list(without)}`,
        action: "Use GPUs of Volta or newer, on Linux, and not through a vGPU without it.",
      }),
    ];
  }
  const old = devices.filter(({ major }) => major !== null && major < 8);
  if (old.length === 0) return [];
  return [
    warning("OLD_GPU", {
      message: "GPUs are older than those that compute in bfloat16.",
      expected: "compute capability 8.0 or newer",
      found: old.map(({ ordinal, major, minor }) => `GPU ${ordinal}: ${major}.${minor}`).join(", "),
      action: "Set engine.dtype to float16 or float32, in training too.",
    }),
  ];
}

/** What was really tried: contexts, round trips of memory, pinning. */
function judgeTrials(cuda: CudaFacts, kind: string): Finding[] {
  const findings: Finding[] = [];
  for (const { ordinal, error } of cuda.contexts) {
    if (error === undefined) continue;
    findings.push(
      problem("NO_CONTEXT", {
        message: `${kind} ${ordinal} gives no context: ${error.message}`,
        expected: "a context",
        found: error.found,
        action: "See `nvidia-smi`: another process may fill the GPU, or have it for itself (compute mode).",
      }),
    );
  }
  const own = cuda.roundTrips.filter(({ from, to }) => from === to);
  const across = cuda.roundTrips.filter(({ from, to }) => from !== to);
  findings.push(...own.filter(failed).map((trip) => tripFailed(trip, kind)));
  findings.push(...across.filter(failed).map((trip) => acrossFailed(trip, kind)));
  findings.push(...worked(own, across, kind));
  if (cuda.end.how !== "done") {
    findings.push(
      problem("VMM_ROUND_TRIP", {
        message: `The driver ${cuda.end.how === "deadline" ? "hangs" : "crashes"} while memory of its GPUs is tried.`,
        expected: "every trial to end",
        found: endWords(cuda.end),
        action: "Look for Xid in the kernel log (dmesg); reset the GPU or reboot.",
      }),
    );
  }
  return findings;
}

const failed = ({ error }: RoundTrip): boolean => error !== undefined;

function worked(own: readonly RoundTrip[], across: readonly RoundTrip[], kind: string): Finding[] {
  const good = own.filter((trip) => !failed(trip));
  if (good.length === 0) return [];
  const pairs = across.filter((trip) => !failed(trip)).map(({ from, to }) => `${from} -> ${to}`);
  return [
    ok(
      "VMM_ROUND_TRIP",
      `Memory of ${kind} ${good.map(({ from }) => from).join(", ")} was made, written, exported as a descriptor, ` +
        "read by another process, and released.",
      `${shortBytes(good[0]?.bytes ?? 0)} each${pairs.length > 0 ? `; read on another GPU: ${pairs.join(", ")}` : ""}`,
    ),
  ];
}

function tripFailed({ from, stage, error }: RoundTrip, kind: string): Finding {
  const actions: Record<string, string> = {
    create: "Free memory on this GPU; see `nvidia-smi`.",
    export: "In a container or a virtual machine, allow CUDA's IPC; gVisor and some vGPUs do not have it.",
    import: "Both processes need the same GPUs visible, and the same driver library.",
  };
  return problem("VMM_ROUND_TRIP", {
    message: `Memory of ${kind} ${from} cannot be passed to another process: it failed at "${stage}".`,
    expected: "create, map, write, export, import, read and release to work",
    found: `${error?.message ?? ""} ${error?.found ?? ""}`.trim(),
    action: actions[stage] ?? "Update the NVIDIA driver; the kernel log may say more (Xid).",
  });
}

function acrossFailed({ from, to, error }: RoundTrip, kind: string): Finding {
  return warning("VMM_ACROSS", {
    message: `Memory of ${kind} ${from} cannot be read on ${kind} ${to}.`,
    expected: "peer access, for ZeRO-3 and for engines on several GPUs",
    found: `${error?.message ?? ""} ${error?.found ?? ""}`.trim(),
    action: "Use GPUs that are joined by NVLink or one PCIe switch; turn off ACS and the IOMMU for them.",
  });
}

/** Whether host memory can be pinned, which the limit of locked memory may forbid. */
export function judgePinning({ gpus, cuda, host }: Pick<Facts, "gpus" | "cuda" | "host">): Finding {
  const { lockedBytes } = host.limits;
  const limit = lockedBytes === null ? "unknown" : lockedBytes === "unlimited" ? "unlimited" : shortBytes(lockedBytes);
  const found = `limit ${limit}`;
  if (gpus === "stand-in") {
    return ok("MEMLOCK", "Stand-in GPUs lock no memory, so the limit of locked memory does not matter.", found);
  }
  const raise = "ulimit -l unlimited (docker: --ulimit memlock=-1; systemd: LimitMEMLOCK=infinity)";
  const { register } = cuda;
  if (register === null) {
    if (lockedBytes === "unlimited") return ok("MEMLOCK", "Locked memory is not limited.");
    return unknown("MEMLOCK", "Whether host memory can be pinned could not be tried.", found, raise);
  }
  const tried = `${shortBytes(register.bytes)} tried, ${found}`;
  if (register.error !== undefined) {
    return problem("MEMLOCK", {
      message: "Host memory cannot be pinned: an arena could not be filled.",
      expected: "cuMemHostRegister to work",
      found: `${register.error.message} ${tried}`,
      action: raise,
    });
  }
  if (typeof lockedBytes === "number" && lockedBytes >= register.bytes) {
    return warning("MEMLOCK", {
      message: "Host memory can be pinned; whether more than the limit of locked memory can, was not tried.",
      expected: "no limit, or one above the arenas of all ranks",
      found: tried,
      action: raise,
    });
  }
  return ok("MEMLOCK", "Host memory can be pinned, also beyond the limit of locked memory.", tried);
}

const endWords = ({ detail, at }: ProbeEnd): string => (at === null ? detail : `${detail}, at: ${at}`);

const cudaWords = (version: number): string => `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
