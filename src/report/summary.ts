/**
 * summary.json: the figures of a run, computed from its events and the ledger and from nothing else.
 */
import type { Failure } from "../protocol/messages.js";
import { type EventBody, type ExitReason, eventsOf, type RunEvent, type Stamp, type Topology } from "./events.js";
import type { NodesSummary } from "./nodes.js";

/** What the memory ledger knows of one GPU at the end of a run. */
export interface LedgerFigures {
  readonly gpus: readonly {
    readonly index: number;
    /** Most device memory in use at once, by NVML; null when it was never sampled. */
    readonly peakBytes: number | null;
    /** Device memory of the ranks while the engines generate. */
    readonly leftByTrainingBytes: number | null;
    /** Device memory of the engines while the ranks train. */
    readonly leftByEngineBytes: number | null;
  }[];
}

export interface PhaseFigures {
  readonly name: string;
  readonly count: number;
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly maxMs: number;
}

export interface GpuFigures {
  readonly index: number;
  readonly peakBytes: number | null;
  /** What the ranks of this GPU gave back in the last complete handoff; null when there was none. */
  readonly trainingReleasedBytes: number | null;
  readonly leftByTrainingBytes: number | null;
  readonly leftByEngineBytes: number | null;
}

export interface Summary {
  /** true: the GPUs were stand-ins; their memory is counted exactly, their speed is a model. */
  readonly simulated: boolean;
  readonly topology: Topology;
  /** Generated batches that the ranks reported a reward of (round trips when they report none). */
  readonly batches: number;
  readonly handoffs: { readonly toGeneration: number; readonly toTraining: number };
  /** Optimizer step of the last weights that the engines held; null: none ever. */
  readonly weightEpoch: number | null;
  readonly checks: {
    readonly weightChecksumsPassed: number;
    readonly weightChecksumsFailed: number;
    readonly maxLogprobDifference: number | null;
  };
  readonly phases: readonly PhaseFigures[];
  readonly reward: {
    readonly first: number | null;
    readonly last: number | null;
    readonly heldOutBefore: number | null;
    readonly heldOutAfter: number | null;
  };
  readonly gpus: readonly GpuFigures[];
  /** Seconds that the model of the stand-in GPUs gives for the copies of the run; null on real GPUs. */
  readonly simulatedCopySeconds: number | null;
  /** Left when everything had ended; null: not checked. */
  readonly left: { readonly processes: number; readonly deviceBytes: number | null } | null;
  readonly seconds: number;
  /** `failure`: why, null where nothing failed. */
  readonly exit: { readonly reason: ExitReason; readonly code: number; readonly failure: Failure | null };
  /** On node 0 of several: of all of them. The other figures are of this node alone. */
  readonly nodes?: NodesSummary;
}

type Of<T extends EventBody["type"]> = Stamp & Extract<EventBody, { type: T }>;

/**
 * The figures of a run. Works on any prefix of the events of a run, so that a failed run has a summary too.
 *
 * @throws Error when there is no `started` or no `exit` event: then these are not the events of a run
 */
export function summary(events: readonly RunEvent[], ledger: LedgerFigures): Summary {
  const started = eventsOf(events, "started")[0];
  const exit = eventsOf(events, "exit").at(-1);
  if (started === undefined || exit === undefined) {
    throw new Error("the events of a run begin with `started` and end with `exit`");
  }
  const phases = eventsOf(events, "phase");
  const checked = eventsOf(events, "checked");
  const metrics = eventsOf(events, "metrics");
  const logprobs = eventsOf(events, "logprob");
  const model = eventsOf(events, "model").at(-1);
  const left = eventsOf(events, "left").at(-1);
  // Counted by handoff: engines of different speed may let the node go back and forth between two phases.
  const handoffsOf = (some: readonly Of<"phase">[]): number => new Set(some.map(({ handoff }) => handoff)).size;
  const handoffs = {
    toGeneration: handoffsOf(phases.filter(({ to }) => to === "generate")),
    // A rank may be at the next handoff before the last one has its parameters back: then there is no `train`.
    toTraining: handoffsOf(phases.filter(({ from, to }) => from === "resume" && to !== "end")),
  };
  const rewards = valuesByStep(metrics, "reward");
  const heldOut = valuesByStep(metrics, "heldOut");
  return {
    simulated: started.simulated,
    topology: {
      ...started.topology,
      ranks: model?.stateBytes.length ?? started.topology.ranks,
      zeroStage: model?.zeroStage ?? started.topology.zeroStage,
    },
    batches: rewards.length > 0 ? rewards.length : handoffs.toTraining,
    handoffs,
    weightEpoch: checked.filter((check) => check.failed === 0).at(-1)?.epoch ?? null,
    checks: {
      weightChecksumsPassed: sum(checked.map((check) => check.passed)),
      weightChecksumsFailed: sum(checked.map((check) => check.failed)),
      maxLogprobDifference: greatest(logprobs.map((check) => check.maxDifference)),
    },
    phases: phaseFigures(phases, exit.monotonicMs),
    reward: {
      first: rewards[0] ?? null,
      last: rewards.at(-1) ?? null,
      heldOutBefore: heldOut[0] ?? null,
      heldOutAfter: heldOut.length > 1 ? (heldOut.at(-1) ?? null) : null,
    },
    gpus: ledger.gpus.map((gpu) => ({
      index: gpu.index,
      peakBytes: gpu.peakBytes,
      trainingReleasedBytes: releasedBytes(eventsOf(events, "released"), gpu.index),
      leftByTrainingBytes: gpu.leftByTrainingBytes,
      leftByEngineBytes: gpu.leftByEngineBytes,
    })),
    simulatedCopySeconds: started.simulated ? simulatedSeconds(eventsOf(events, "work")) : null,
    left: left === undefined ? null : { processes: left.processes, deviceBytes: total(left.deviceBytes) },
    seconds: round((exit.monotonicMs - started.monotonicMs) / 1000, 3),
    exit: { reason: exit.reason, code: exit.code, failure: exit.failure },
  };
}

/** How long each phase took, by name, in the order in which they were first seen. The last ends with the run. */
export function phaseFigures(phases: readonly Of<"phase">[], endMs: number): PhaseFigures[] {
  const durations = new Map<string, number[]>();
  phases.forEach((phase, position) => {
    const until = phases[position + 1]?.monotonicMs ?? endMs;
    const known = durations.get(phase.to) ?? [];
    known.push(until - phase.monotonicMs);
    durations.set(phase.to, known);
  });
  return [...durations].map(([name, values]) => {
    const sorted = values.sort((a, b) => a - b);
    return {
      name,
      count: sorted.length,
      p50Ms: round(quantile(sorted, 0.5), 3),
      p95Ms: round(quantile(sorted, 0.95), 3),
      maxMs: round(sorted.at(-1) ?? 0, 3),
    };
  });
}

/** Linear between the nearest ranks, as numpy's default. `sorted` ascending, not empty. */
export function quantile(sorted: readonly number[], q: number): number {
  const position = (sorted.length - 1) * q;
  const below = sorted[Math.floor(position)] ?? Number.NaN;
  const above = sorted[Math.ceil(position)] ?? Number.NaN;
  return below + (above - below) * (position - Math.floor(position));
}

/** One value a step, in the order of the steps: the mean over the ranks that reported it, of what each said last. */
function valuesByStep(metrics: readonly Of<"metrics">[], name: string): number[] {
  const byStep = new Map<number, Map<number, number>>();
  for (const { step, rank, values } of metrics) {
    const value = values[name];
    if (value !== undefined && value !== null) {
      byStep.set(step, (byStep.get(step) ?? new Map<number, number>()).set(rank, value));
    }
  }
  return [...byStep].sort(([a], [b]) => a - b).map(([, ranks]) => sum([...ranks.values()]) / ranks.size);
}

function releasedBytes(released: readonly Of<"released">[], gpu: number): number | null {
  const here = released.filter((event) => event.gpu === gpu);
  const last = here.filter((event) => event.stage === "all").at(-1)?.handoff;
  if (last === undefined) {
    return null;
  }
  return sum(here.filter((event) => event.handoff === last).map((event) => event.releasedBytes));
}

function simulatedSeconds(work: readonly Of<"work">[]): number {
  const seconds = work.map(({ figures }) => figures.simulatedSeconds);
  return round(sum(seconds.filter((value): value is number => typeof value === "number")), 6);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

/** null as soon as one part is not known. */
function total(values: readonly (number | null)[]): number | null {
  return values.includes(null) ? null : sum(values as readonly number[]);
}

function greatest(values: readonly (number | null)[]): number | null {
  const known = values.filter((value): value is number => value !== null);
  return known.length === 0 ? null : Math.max(...known);
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
