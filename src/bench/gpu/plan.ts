/** Which processes a bench on a GPU starts, and what each of them is given. */
import type { Shape } from "./shapes.js";

export const GPU_SUBJECTS = ["offload", "sync", "sleep", "handoff"] as const;
export type GpuSubject = (typeof GPU_SUBJECTS)[number];

/** How vLLM captures CUDA graphs: as by default, decoding only and nothing compiled, or not at all. */
export const GRAPHS = ["vllm", "decode", "none"] as const;
export type Graphs = (typeof GRAPHS)[number];

export type Side = "ours" | "stock";

/** How many GPUs a part uses, and for what. */
export interface Layout {
  /** Training ranks, one a GPU. */
  readonly gpus: number;
  /** 0: the part has none. */
  readonly engines: number;
  /** Workers of each engine. */
  readonly tensorParallel: number;
}

/** One process, or one `baton run`, with a result of its own. */
export interface Part {
  /** Unique in a folder of results. */
  readonly name: string;
  /** `ranks`: a module that a launcher starts on each GPU. */
  readonly kind: "module" | "ranks" | "run";
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
  readonly layout: Layout;
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
  readonly layout: Layout;
  /** Optimizer steps between two handoffs. */
  readonly iterations: number;
  /** A frozen reference model beside the policy, in handoffs. */
  readonly reference: boolean;
  /** Rank of the adapters that handoffs train instead of all parameters; 0: none. */
  readonly lora: number;
  /** Only parts whose names contain one of these; empty: all. */
  readonly names: readonly string[];
}

const GIB = 2 ** 30;
/** Contexts, NCCL, kernels, activations, CUDA graphs. */
const BESIDE_BYTES = 8 * GIB;
const OFFLOAD_MS = 300_000;
const ENGINE_MS = 420_000;
const HANDOFF_MS = 480_000;
/** Of each cycle beyond those. */
const HANDOFF_CYCLE = { usual: 20, ms: 6_000 };

/** A handoff: how much room the engine leaves, and what of the training state is partitioned. */
interface Variant {
  readonly name: string;
  readonly room: "tight" | "roomy";
  readonly stage: number;
}

const VARIANTS: readonly Variant[] = [
  { name: "tight", room: "tight", stage: 2 },
  { name: "roomy", room: "roomy", stage: 2 },
];
const TIGHT_ZERO3: Variant = { name: "tight-zero3", room: "tight", stage: 3 };

/**
 * ZeRO-3 has a sense only where there is more than one rank, or where its name is asked for; adapters have no state that
 * is worth partitioning.
 */
const variantsOf = ({ layout, lora, names }: PlanOptions): readonly Variant[] => {
  const wanted = layout.gpus > 1 || names.some((name) => name.includes(TIGHT_ZERO3.name));
  return wanted && lora === 0 ? [...VARIANTS, TIGHT_ZERO3] : VARIANTS;
};

/** The parts in the order in which they run: ours and its peer one after the other. */
export function planParts(options: PlanOptions): { parts: Part[]; skipped: Skipped[] } {
  const parts: Part[] = [];
  const skipped: Skipped[] = [];
  const wants = (subject: GpuSubject): boolean => options.subjects.includes(subject);
  const sides: readonly Side[] = options.simulated ? ["ours"] : ["ours", "stock"];
  for (const shape of options.shapes) {
    if (wants("offload")) {
      for (const stage of [2, 3]) {
        const lacking = trainingLack(shape, stage, { ...options, reference: false, lora: 0 });
        if (lacking !== null) skipped.push({ name: `offload zero${stage} ${shape.name}`, why: lacking });
        else for (const side of sides) parts.push(offload(shape, stage, side, options));
      }
    }
    if (wants("sync") || wants("sleep")) for (const side of sides) parts.push(engine(shape, side, options));
    if (wants("handoff")) {
      for (const variant of variantsOf(options)) {
        const cacheBytes = handoffCache(shape, variant, options);
        const lacking = trainingLack(shape, variant.stage, options);
        const why = lacking ?? (cacheBytes === null ? "the GPU is not large enough for this variant" : null);
        if (why !== null || cacheBytes === null) {
          skipped.push({ name: `handoff ${variant.name} ${shape.name}`, why: why ?? "" });
        } else for (const side of sides) parts.push(handoff(shape, variant, cacheBytes, side, options));
      }
    }
  }
  const named = ({ name }: Part): boolean =>
    options.names.length === 0 || options.names.some((text) => name.includes(text));
  return { parts: parts.filter(named), skipped };
}

/**
 * Bytes of training state on each GPU, in mixed precision with Adam: weights and gradients in bf16, three fp32 copies.
 * ZeRO-2 partitions all but the weights.
 */
function trainingBytes(parameters: number, stage: number, { layout, reference, lora }: PlanOptions): number {
  const weights = stage === 3 ? (2 * parameters) / layout.gpus : 2 * parameters;
  if (lora > 0) return weights; // the adapters are small beside it, and the reference is the base
  return weights * (reference ? 2 : 1) + (14 * parameters) / layout.gpus;
}

/** Why a shape cannot be trained on these GPUs; null: it can. */
function trainingLack(shape: Shape, stage: number, options: PlanOptions): string | null {
  const { simulated, gpuBytes, layout } = options;
  if (simulated || shape.parameters === null) return null;
  const needed = trainingBytes(shape.parameters, stage, options) + BESIDE_BYTES;
  if (needed <= gpuBytes) return null;
  const gib = (bytes: number): string => (bytes / GIB).toFixed(0);
  const where = layout.gpus === 1 ? "on one GPU, which has" : "on each GPU, which have";
  return `training this shape needs about ${gib(needed)} GiB ${where} ${gib(gpuBytes)}`;
}

/** Of names: nothing for one GPU. */
function suffixOf({ layout: { gpus, engines, tensorParallel } }: PlanOptions): string {
  return gpus === 1 ? "" : `-${gpus}gpus-${engines}xtp${tensorParallel}`;
}

const base = (shape: Shape, side: Side, options: PlanOptions) => ({
  shape: shape.name,
  side,
  release: "all" as const,
  layout: options.layout,
  job: {
    model: shape.folder,
    cycles: options.cycles,
    graphs: options.graphs,
    simulated: options.simulated,
    ...(options.simulated ? { micro_batch: 1, length: 32 } : {}),
    ...(options.layout.gpus === 1
      ? {}
      : { gpus: options.layout.gpus, engines: options.layout.engines, tp: options.layout.tensorParallel }),
  },
});

function offload(shape: Shape, stage: number, side: Side, options: PlanOptions): Part {
  const shared = base(shape, side, options);
  const { gpus } = options.layout;
  const several = gpus === 1 ? "" : `-${gpus}gpus`;
  return {
    ...shared,
    layout: { gpus, engines: 0, tensorParallel: 0 },
    name: `offload-zero${stage}-${shape.name}${several}-${side}`,
    kind: gpus === 1 ? "module" : "ranks",
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
  const several = options.layout.gpus > 1 && side === "stock" ? "_many" : "";
  return {
    ...shared,
    name: `engine-${shape.name}${suffixOf(options)}-${side}`,
    kind: "module",
    subject: "engine",
    variant: "",
    module: `baton.bench.gpu.engine_${side}${several}`,
    job: { ...shared.job, cache_bytes: options.simulated ? 16 * 2 ** 20 : 16 * GIB },
    startsEngine: true,
    deadlineMs: ENGINE_MS,
  };
}

function handoff(shape: Shape, variant: Variant, cacheBytes: number, side: Side, options: PlanOptions): Part {
  const shared = base(shape, side, options);
  const { layout, iterations, reference, lora } = options;
  const more = [
    ...(lora > 0 ? [`lora${lora}`] : []),
    ...(reference ? ["reference"] : []),
    ...(iterations > 1 ? [`${iterations}steps`] : []),
  ];
  const several = layout.gpus > 1 ? "_many" : "";
  const stockKind = layout.gpus > 1 ? "ranks" : "module";
  const variantName = [variant.name, ...more].join("-");
  return {
    ...shared,
    name: `handoff-${variantName}-${shape.name}${suffixOf(options)}-${side}`,
    kind: side === "ours" ? "run" : stockKind,
    subject: "handoff",
    variant: variantName,
    module: side === "ours" ? "baton.bench.gpu.handoff_rank" : `baton.bench.gpu.handoff_stock${several}`,
    job: {
      ...shared.job,
      stage: variant.stage,
      cache_bytes: cacheBytes,
      ...(more.length > 0 ? { iterations, reference, lora } : {}),
    },
    startsEngine: true,
    deadlineMs: HANDOFF_MS + Math.max(0, options.cycles - HANDOFF_CYCLE.usual) * HANDOFF_CYCLE.ms,
    release: variant.room === "roomy" ? "needed" : "all",
  };
}

/**
 * The engine's cache on each GPU. Tight: the engine takes what the parameters, contexts and buffers leave, so training
 * state must go. Roomy: all of it fits beside the engine. null: this GPU is too small for that.
 */
function handoffCache(shape: Shape, { room, stage }: Variant, options: PlanOptions): number | null {
  if (options.simulated) return 16 * 2 ** 20;
  const { layout, gpuBytes } = options;
  const parameters = shape.parameters ?? 0;
  const engineWeights = (2 * parameters) / layout.tensorParallel;
  // What the peer leaves on the GPU: the parameters, and a reference model that is partitioned.
  const trained = stage === 3 ? ((options.reference ? 4 : 2) * parameters) / layout.gpus : 2 * parameters;
  if (room === "tight") {
    const cache = Math.floor((gpuBytes - BESIDE_BYTES - trained - engineWeights) / GIB) * GIB;
    return cache > 0 ? cache : null;
  }
  const left = gpuBytes - trainingBytes(parameters, stage, options) - engineWeights - BESIDE_BYTES - 4 * GIB;
  const cache = Math.min(16 * GIB, Math.floor(left / GIB) * GIB);
  return cache > 0 ? cache : null;
}
