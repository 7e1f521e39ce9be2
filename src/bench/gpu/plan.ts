/** Which processes a bench on a GPU starts, and what each of them is given. */
import type { Shape } from "./shapes.js";

export const GPU_SUBJECTS = ["offload", "sync", "sleep", "handoff"] as const;
export type GpuSubject = (typeof GPU_SUBJECTS)[number];

/** How vLLM captures CUDA graphs: as by default, decoding only and nothing compiled, or not at all. */
export const GRAPHS = ["vllm", "decode", "none"] as const;
export type Graphs = (typeof GRAPHS)[number];

export type Side = "ours" | "stock";

/** One process, or one `baton run`, with a result of its own. */
export interface Part {
  /** Unique in a folder of results. */
  readonly name: string;
  readonly kind: "module" | "run";
  /** What rows are made of it: `engine` is sync and sleep, which share one engine. */
  readonly subject: "offload" | "engine" | "handoff";
  readonly side: Side;
  readonly shape: string;
  readonly variant: string;
  readonly module: string;
  readonly job: Readonly<Record<string, unknown>>;
  /** Starts a vLLM, whose CUDA graphs may have to be given up. */
  readonly startsEngine: boolean;
  readonly deadlineMs: number;
  /** Handoff only. */
  readonly release: "all" | "needed";
}

/** A part that is not started, and why. */
export interface Skipped {
  readonly name: string;
  readonly why: string;
}

export interface PlanOptions {
  readonly subjects: readonly GpuSubject[];
  readonly shapes: readonly Shape[];
  readonly cycles: number;
  readonly graphs: Graphs;
  readonly simulated: boolean;
  /** Of GPU 0. */
  readonly gpuBytes: number;
  /** Only parts whose names contain one of these; empty: all. */
  readonly names: readonly string[];
}

const GIB = 2 ** 30;
/** Mixed precision with Adam: weights, gradients (both bf16), and three fp32 copies. */
const TRAINING_BYTES_PER_PARAMETER = 16;
/** Contexts, NCCL, kernels, activations, CUDA graphs. */
const BESIDE_BYTES = 8 * GIB;
const OFFLOAD_MS = 300_000;
const ENGINE_MS = 420_000;
const HANDOFF_MS = 480_000;

/** The parts in the order in which they run: ours and its peer one after the other. */
export function planParts(options: PlanOptions): { parts: Part[]; skipped: Skipped[] } {
  const parts: Part[] = [];
  const skipped: Skipped[] = [];
  const wants = (subject: GpuSubject): boolean => options.subjects.includes(subject);
  const sides: readonly Side[] = options.simulated ? ["ours"] : ["ours", "stock"];
  for (const shape of options.shapes) {
    const lacking = trainingLack(shape, options);
    if (wants("offload")) {
      for (const stage of [2, 3]) {
        const name = `offload zero${stage} ${shape.name}`;
        if (lacking !== null) skipped.push({ name, why: lacking });
        else for (const side of sides) parts.push(offload(shape, stage, side, options));
      }
    }
    if (wants("sync") || wants("sleep")) for (const side of sides) parts.push(engine(shape, side, options));
    if (wants("handoff")) {
      for (const variant of ["tight", "roomy"] as const) {
        const name = `handoff ${variant} ${shape.name}`;
        const cacheBytes = handoffCache(shape, variant, options);
        const why = lacking ?? (cacheBytes === null ? "the GPU is not large enough for this variant" : null);
        if (why !== null || cacheBytes === null) skipped.push({ name, why: why ?? "" });
        else for (const side of sides) parts.push(handoff(shape, variant, cacheBytes, side, options));
      }
    }
  }
  const named = ({ name }: Part): boolean =>
    options.names.length === 0 || options.names.some((text) => name.includes(text));
  return { parts: parts.filter(named), skipped };
}

/** Why a shape cannot be trained on this GPU; null: it can. */
function trainingLack(shape: Shape, { simulated, gpuBytes }: PlanOptions): string | null {
  if (simulated || shape.parameters === null) return null;
  const needed = shape.parameters * TRAINING_BYTES_PER_PARAMETER + BESIDE_BYTES;
  if (needed <= gpuBytes) return null;
  const gib = (bytes: number): string => (bytes / GIB).toFixed(0);
  return `training this shape needs about ${gib(needed)} GiB on one GPU, which has ${gib(gpuBytes)}`;
}

const base = (shape: Shape, side: Side, { cycles, simulated, graphs }: PlanOptions) => ({
  shape: shape.name,
  side,
  release: "all" as const,
  job: {
    model: shape.folder,
    cycles,
    graphs,
    simulated,
    ...(simulated ? { micro_batch: 1, length: 32 } : {}),
  },
});

function offload(shape: Shape, stage: number, side: Side, options: PlanOptions): Part {
  const shared = base(shape, side, options);
  return {
    ...shared,
    name: `offload-zero${stage}-${shape.name}-${side}`,
    kind: "module",
    subject: "offload",
    variant: `zero${stage}`,
    module: `baton.bench.gpu.offload_${side}`,
    job: { ...shared.job, stage },
    startsEngine: false,
    deadlineMs: OFFLOAD_MS,
  };
}

function engine(shape: Shape, side: Side, options: PlanOptions): Part {
  const shared = base(shape, side, options);
  return {
    ...shared,
    name: `engine-${shape.name}-${side}`,
    kind: "module",
    subject: "engine",
    variant: "",
    module: `baton.bench.gpu.engine_${side}`,
    job: { ...shared.job, cache_bytes: options.simulated ? 16 * 2 ** 20 : 16 * GIB },
    startsEngine: true,
    deadlineMs: ENGINE_MS,
  };
}

function handoff(shape: Shape, variant: string, cacheBytes: number, side: Side, options: PlanOptions): Part {
  const shared = base(shape, side, options);
  return {
    ...shared,
    name: `handoff-${variant}-${shape.name}-${side}`,
    kind: side === "ours" ? "run" : "module",
    subject: "handoff",
    variant,
    module: side === "ours" ? "baton.bench.gpu.handoff_rank" : "baton.bench.gpu.handoff_stock",
    job: { ...shared.job, stage: 2, cache_bytes: cacheBytes },
    startsEngine: true,
    deadlineMs: HANDOFF_MS,
    release: variant === "roomy" ? "needed" : "all",
  };
}

/**
 * The engine's cache. Tight: the engine takes what the parameters, contexts and buffers leave, so training state must
 * go. Roomy: all of it fits beside the engine. null: this GPU is too small for that.
 */
function handoffCache(shape: Shape, variant: "tight" | "roomy", options: PlanOptions): number | null {
  if (options.simulated) return 16 * 2 ** 20;
  const weights = 2 * (shape.parameters ?? 0);
  if (variant === "tight") {
    const cache = Math.floor((options.gpuBytes - BESIDE_BYTES - 2 * weights) / GIB) * GIB;
    return cache > 0 ? cache : null;
  }
  const room = options.gpuBytes - (TRAINING_BYTES_PER_PARAMETER / 2) * weights - weights - BESIDE_BYTES - 4 * GIB;
  const cache = Math.min(16 * GIB, Math.floor(room / GIB) * GIB);
  return cache > 0 ? cache : null;
}
