/** A machine with two real GPUs on which all is well, and how to spoil it. */
import type { CudaFacts, Facts, NvmlDevice } from "../../../src/doctor/facts.js";
import type { Finding, Verdict } from "../../../src/doctor/finding.js";
import { judge } from "../../../src/doctor/judge.js";

export const GIB = 2 ** 30;
export const DONE = { how: "done", at: "pinning host memory", detail: "" } as const;
export const FAILURE = { code: "CUDA_CALL_FAILED", message: "it failed.", expected: "", found: "999", action: "" };

const gpus = [0, 1];
const uuid = (gpu: number): string => `GPU-0000000${gpu}-0000-0000-0000-000000000000`;

function cuda(): CudaFacts {
  return {
    end: DONE,
    driver: { path: "/usr/lib/libcuda.so.1", simulated: false, version: 13_000, deviceCount: 2 },
    error: null,
    devices: gpus.map((ordinal) => ({ ordinal, uuid: uuid(ordinal), major: 9, minor: 0, vmm: true, fdExport: true })),
    peers: [
      { from: 0, to: 1, access: true },
      { from: 1, to: 0, access: true },
    ],
    contexts: gpus.map((ordinal) => ({ ordinal })),
    roundTrips: gpus.flatMap((from) => gpus.map((to) => ({ from, to, bytes: 2 ** 21, stage: "release" }))),
    register: { bytes: 64 * 2 ** 20 },
  };
}

function device(index: number): NvmlDevice {
  return {
    ...{ index, name: "NVIDIA H200", uuid: uuid(index), busId: `00000000:0${index + 1}:00.0` },
    ...{ pcieGeneration: 1, pcieMaxGeneration: 5, pcieWidth: 16, pcieMaxWidth: 16, nvlinksActive: 18 },
    ...{ mig: false, computeMode: 0, persistence: 1, totalBytes: 141 * GIB, usedBytes: GIB, processes: [] },
  };
}

/** Facts of the machine; `spoil` changes what it likes. */
export function machine(spoil: (facts: Mutable<Facts>) => void = () => {}): Facts {
  const facts: Facts = {
    gpus: "real",
    cuda: cuda(),
    nvml: {
      end: DONE,
      library: {
        path: "/usr/lib/libnvidia-ml.so.1",
        simulated: false,
        driverVersion: "580.95.05",
        cudaVersion: 13_000,
        deviceCount: 2,
      },
      error: null,
      devices: gpus.map(device),
      pairs: [
        { from: 0, to: 1, level: 50, readStatus: 0, nvlinkStatus: 0 },
        { from: 1, to: 0, level: 50, readStatus: 0, nvlinkStatus: 0 },
      ],
    },
    standin: null,
    host: {
      environment: { NCCL_NVLS_ENABLE: "0" },
      memory: { totalBytes: 512 * GIB, availableBytes: 500 * GIB },
      limits: { lockedBytes: "unlimited", openFiles: 65_536, addressSpaceBytes: "unlimited" },
      cgroups: [{ version: 2, path: "/", limitBytes: "unlimited", usedBytes: GIB, reclaimableBytes: 0 }],
      sharedMemory: { totalBytes: 64 * GIB, freeBytes: 64 * GIB, left: [] },
      overcommit: 0,
      kernel: "6.8.0",
      pidfdError: null,
      firstPidNamespace: true,
      firstIpcNamespace: true,
      deviceFile: true,
      socketParent: "/run/user/1000",
      masterPortTaken: null,
    },
    python: {
      path: "/venv/bin/python",
      asked: ["/venv/bin/python"],
      version: [3, 12],
      packages: {
        ...{ torch: "2.11.0", numpy: "2.4.6", msgspec: "0.22.0", deepspeed: "0.19.8", vllm: "0.26.0" },
        ...{ transformers: "5.23.0", accelerate: "1.15.0", peft: "0.20.0", ninja: "1.13.2" },
      },
      torchCuda: "13.0",
      torchIsCudaBuild: true,
    },
    tools: {
      compiler: { path: "/usr/bin/g++", version: "g++ 12.2.0", cxx20: true },
      compilerNames: ["c++", "g++", "clang++"],
      cudaHome: "/usr/local/cuda",
      nvccRelease: "13.0",
    },
    software: { node: "22.11.0", baton: "0.1.0", addon: "0.1.0", glibc: "2.39" },
  };
  const changed = structuredClone(facts) as Mutable<Facts>;
  spoil(changed);
  return changed as Facts;
}

/** The same, on a machine without a GPU. */
export function withoutGpu(spoil: (facts: Mutable<Facts>) => void = () => {}): Facts {
  return machine((facts) => {
    const error = { ...FAILURE, code: "DRIVER_NOT_FOUND", found: "libcuda.so.1: no such file" };
    facts.standin = {
      cuda: structuredClone(facts.cuda),
      nvml: structuredClone(facts.nvml),
    } as Mutable<Facts>["standin"];
    if (facts.standin?.cuda.driver) facts.standin.cuda.driver.simulated = true;
    facts.gpus = "stand-in";
    facts.host.deviceFile = false;
    facts.cuda = {
      end: { ...DONE },
      driver: null,
      error,
      devices: [],
      peers: [],
      contexts: [],
      roundTrips: [],
      register: null,
    };
    facts.nvml = { end: { ...DONE }, library: null, error, devices: [], pairs: [] };
    spoil(facts);
  });
}

/** `code:verdict` of everything that is not well. */
export function troubles(facts: Facts): string[] {
  return judge(facts, null)
    .filter(({ verdict }) => verdict !== "ok")
    .map(({ code, verdict }) => `${code}:${verdict}`);
}

/** The findings with this code. */
export const found = (facts: Facts, code: string, verdict?: Verdict): Finding[] =>
  judge(facts, null).filter((finding) => finding.code === code && (verdict ?? finding.verdict) === finding.verdict);

export type Mutable<T> = T extends readonly (infer E)[]
  ? Mutable<E>[]
  : T extends object
    ? { -readonly [K in keyof T]: Mutable<T[K]> }
    : T;

/** A name, `code:verdict` of the one finding that it must lead to, and what is spoiled. */
export type Trouble = readonly [string, string, (facts: Mutable<Facts>) => void];
