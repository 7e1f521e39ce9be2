/** What a `baton run` says of each GPU in events.jsonl: the bytes that were moved, and who held how much when. */
import { eventsOf, type RunEvent } from "../../report/events.js";

/** Bytes by handoff, of one GPU. */
export interface GpuMoves {
  readonly gpu: number;
  /** Given back to the GPU by training, and of that saved to the host. */
  readonly releasedBytes: readonly number[];
  readonly savedBytes: readonly number[];
  /** Copied back to the GPU for training. */
  readonly returnedBytes: readonly number[];
  /** Weights that the engine's worker took over, and the seconds of the copy. */
  readonly pulledBytes: readonly number[];
  readonly pullSeconds: readonly number[];
}

/** Bytes in use of each GPU at the end of a phase, and the most in it, by NVML: the largest of all handoffs. */
export interface PhaseLedger {
  readonly phase: string;
  readonly usedBytes: readonly number[];
  readonly peakBytes: readonly number[];
}

export function gpuMoves(events: readonly RunEvent[]): GpuMoves[] {
  const gpuOf = new Map(
    eventsOf(events, "process")
      .map(({ process, gpu }) => [process, gpu] as const)
      .filter(known),
  );
  const released = eventsOf(events, "released");
  const resumed = eventsOf(events, "resumed");
  const pulls = eventsOf(events, "work").filter(({ process, figures }) => {
    return process.startsWith("worker ") && typeof figures.copiedBytes === "number";
  });
  const gpus = [...new Set(released.map(({ gpu }) => gpu))].sort((a, b) => a - b);
  return gpus.map((gpu) => {
    const mine = pulls.filter(({ process }) => gpuOf.get(process) === gpu);
    return {
      gpu,
      releasedBytes: byHandoff(released, gpu, ({ releasedBytes }) => releasedBytes),
      savedBytes: byHandoff(released, gpu, ({ savedBytes }) => savedBytes),
      returnedBytes: byHandoff(resumed, gpu, ({ copiedBytes, pendingBytes }) => copiedBytes + pendingBytes),
      pulledBytes: mine.map(({ figures }) => Number(figures.copiedBytes)),
      pullSeconds: mine.map(({ figures }) => Number(figures.copySeconds)),
    };
  });
}

const known = (pair: readonly [string, number | null]): pair is readonly [string, number] => pair[1] !== null;

function byHandoff<T extends { readonly gpu: number; readonly handoff: number }>(
  events: readonly T[],
  gpu: number,
  bytes: (event: T) => number,
): number[] {
  const sums = new Map<number, number>();
  for (const event of events) {
    if (event.gpu === gpu) sums.set(event.handoff, (sums.get(event.handoff) ?? 0) + bytes(event));
  }
  return [...sums.values()];
}

/** In the order in which the phases first came. */
export function phaseLedger(events: readonly RunEvent[]): PhaseLedger[] {
  const found = new Map<string, { usedBytes: number[]; peakBytes: number[] }>();
  for (const { phase, usedBytes, peakBytes } of eventsOf(events, "memory")) {
    const before = found.get(phase) ?? { usedBytes: [], peakBytes: [] };
    found.set(phase, {
      usedBytes: usedBytes.map((bytes, gpu) => Math.max(bytes, before.usedBytes[gpu] ?? 0)),
      peakBytes: peakBytes.map((bytes, gpu) => Math.max(bytes, before.peakBytes[gpu] ?? 0)),
    });
  }
  return [...found].map(([phase, bytes]) => ({ phase, ...bytes }));
}
