/** What the judgements are made from. Bytes are bytes; null is unknown, never 0. */
import type { Failure } from "../protocol/messages.js";

/** A limit of the kernel. */
export type Limit = number | "unlimited" | null;

/** How a probe process ended, and what it was doing then. */
export interface ProbeEnd {
  readonly how: "done" | "deadline" | "crash" | "missing";
  /** What it said it was trying last; null: nothing yet. */
  readonly at: string | null;
  /** For people: the signal, the exit status, the deadline. */
  readonly detail: string;
}

export interface CudaDevice {
  readonly ordinal: number;
  readonly uuid: string | null;
  readonly major: number | null;
  readonly minor: number | null;
  readonly vmm: boolean | null;
  readonly fdExport: boolean | null;
}

export interface RoundTrip {
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
  readonly stage: string;
  readonly error?: Failure;
}

/** What libcuda said. */
export interface CudaFacts {
  readonly end: ProbeEnd;
  /** null: it could not be opened or initialised (`error`), or the probe ended before. */
  readonly driver: {
    readonly path: string;
    readonly simulated: boolean;
    /** 13000 for CUDA 13.0. */
    readonly version: number;
    readonly deviceCount: number;
  } | null;
  readonly error: Failure | null;
  readonly devices: readonly CudaDevice[];
  readonly peers: readonly { readonly from: number; readonly to: number; readonly access: boolean | null }[];
  readonly contexts: readonly { readonly ordinal: number; readonly error?: Failure }[];
  readonly roundTrips: readonly RoundTrip[];
  readonly register: { readonly bytes: number; readonly error?: Failure } | null;
}

export interface NvmlDevice {
  readonly index: number;
  readonly name: string | null;
  readonly uuid: string | null;
  readonly busId: string | null;
  readonly pcieGeneration: number | null;
  readonly pcieMaxGeneration: number | null;
  readonly pcieWidth: number | null;
  readonly pcieMaxWidth: number | null;
  readonly nvlinksActive: number | null;
  readonly mig: boolean | null;
  /** nvmlComputeMode_t: 0 default, 2 prohibited, 3 exclusive process. */
  readonly computeMode: number | null;
  readonly persistence: number | null;
  readonly totalBytes?: number;
  readonly usedBytes?: number;
  readonly processes?: readonly { readonly pid: number; readonly usedBytes: number | null }[];
  readonly error?: Failure;
  readonly processError?: Failure;
}

export interface NvmlPair {
  readonly from: number;
  readonly to: number;
  /** nvmlGpuTopologyLevel_t. */
  readonly level: number | null;
  /** nvmlGpuP2PStatus_t: 0 works. */
  readonly readStatus: number | null;
  readonly nvlinkStatus: number | null;
}

export interface NvmlFacts {
  readonly end: ProbeEnd;
  readonly library: {
    readonly path: string;
    readonly simulated: boolean;
    readonly driverVersion: string;
    readonly cudaVersion: number | null;
    readonly deviceCount: number;
  } | null;
  readonly error: Failure | null;
  readonly devices: readonly NvmlDevice[];
  readonly pairs: readonly NvmlPair[];
}

/** A level of the control groups above this process, the innermost first. */
export interface CgroupLevel {
  readonly version: 1 | 2;
  readonly path: string;
  readonly limitBytes: Limit;
  readonly usedBytes: number | null;
  /** Of `usedBytes`, what the kernel takes back when memory is wanted (inactive file pages). */
  readonly reclaimableBytes: number | null;
}

export interface HostFacts {
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number } | null;
  readonly limits: {
    readonly lockedBytes: Limit;
    readonly openFiles: Limit;
    readonly addressSpaceBytes: Limit;
  };
  readonly cgroups: readonly CgroupLevel[];
  readonly sharedMemory: {
    readonly totalBytes: number;
    readonly freeBytes: number;
    /** Files of Baton or DeepSpeed in it that no process has open or mapped. */
    readonly left: readonly string[];
  } | null;
  /** vm.overcommit_memory. */
  readonly overcommit: number | null;
  readonly kernel: string;
  /** null: a pidfd of this process could be opened. */
  readonly pidfdError: Failure | null;
  /** Whether this process is in the first namespace of its kind; null: cannot be told. */
  readonly firstPidNamespace: boolean | null;
  readonly firstIpcNamespace: boolean | null;
  /** /dev/nvidiactl is there. */
  readonly deviceFile: boolean;
  /** Folder that the socket of a run would be in. */
  readonly socketParent: string;
  /** MASTER_PORT of the environment: whether somebody listens there; null: not set, or cannot be told. */
  readonly masterPortTaken: boolean | null;
}

export interface PythonFacts {
  /** null: none that runs. */
  readonly path: string | null;
  /** Every interpreter that was asked. */
  readonly asked: readonly string[];
  readonly version: readonly [number, number] | null;
  /** By import name; packages that are not there are missing. "unknown": there, without metadata. */
  readonly packages: Readonly<Record<string, string>>;
  /** torch.version.cuda; null: a build without CUDA, or not known. */
  readonly torchCuda: string | null;
  readonly torchIsCudaBuild: boolean | null;
}

export interface ToolFacts {
  readonly compiler: { readonly path: string; readonly version: string; readonly cxx20: boolean } | null;
  /** Names that were looked for. */
  readonly compilerNames: readonly string[];
  /** Where torch would look for CUDA's toolkit, and the release of its nvcc ("13.0"). */
  readonly cudaHome: string | null;
  readonly nvccRelease: string | null;
}

export interface SoftwareFacts {
  readonly node: string;
  readonly baton: string;
  /** Version that the addon was built with, or why it cannot be loaded. */
  readonly addon: string | Failure;
  readonly glibc: string | null;
}

export interface Facts {
  /** What a run on this machine would use by itself. */
  readonly gpus: "real" | "stand-in";
  readonly cuda: CudaFacts;
  readonly nvml: NvmlFacts;
  /** The stand-ins, tried where there are no real GPUs. */
  readonly standin: { readonly cuda: CudaFacts; readonly nvml: NvmlFacts } | null;
  readonly host: HostFacts;
  readonly python: PythonFacts | null;
  readonly tools: ToolFacts;
  readonly software: SoftwareFacts;
}
