/** Whether ranks, engines and GPUs fit together. Pure; used before a run and when ranks say how many they are. */
import type { Failure } from "../protocol/messages.js";

export interface Topology {
  readonly gpus: number;
  /** null: not known yet. */
  readonly ranks: number | null;
  readonly engines: number;
  readonly tensorParallel: number;
}

/** The first thing that does not fit, or null. */
export function checkTopology({ gpus, ranks, engines, tensorParallel }: Topology): Failure | null {
  const needed = engines * tensorParallel;
  if (needed > gpus) {
    return {
      code: "TOO_FEW_GPUS",
      message: "the engines need more GPUs than there are",
      expected: `at least ${needed} GPUs for ${engines} engines with tensorParallel ${tensorParallel}`,
      found: `${gpus} GPUs`,
      action: "Lower engine.engines or engine.tensorParallel, or raise gpus.count.",
    };
  }
  if (ranks === null) return null;
  if (ranks > gpus) {
    return {
      code: "TOO_FEW_GPUS",
      message: "there are more ranks than GPUs",
      expected: `at least ${ranks} GPUs, one for each rank`,
      found: `${gpus} GPUs`,
      action: "Start fewer ranks, or raise gpus.count.",
    };
  }
  if (ranks % engines !== 0) {
    return {
      code: "RANKS_NOT_DIVISIBLE",
      message: "the ranks cannot be shared equally among the engines",
      expected: `a number of ranks that ${engines} divides`,
      found: `${ranks} ranks for ${engines} engines`,
      action: `Start ${Math.max(1, Math.floor(ranks / engines)) * engines} ranks, or change engine.engines.`,
    };
  }
  return null;
}
