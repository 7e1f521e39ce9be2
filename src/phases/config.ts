/** What the state machine has to know of a run. All of it comes from the recipe. */
export interface PhaseConfig {
  /** GPUs of the node that Baton uses; they are numbered from 0. */
  readonly gpus: number;
  /** Ranks on this node; null: taken from the first rank that says hello (`localWorldSize`). */
  readonly ranks: number | null;
  readonly engines: number;
  readonly tensorParallel: number;
  /** Of the engines' weights, by its name in torch. */
  readonly engineDtype: string;
  /** `all`: every rank gives back all it can; `needed`: only what the engine on its GPU lacks. */
  readonly release: "all" | "needed";
  readonly checks: CheckConfig;
  readonly deadlines: Deadlines;
}

export interface CheckConfig {
  /** Which syncs are proven by checksums. */
  readonly weights: "every" | "first" | "off";
  /** Compare the first sync of each plan with the engine's own `load_weights`. */
  readonly compareFirst: boolean;
  /** Largest difference of a logprob between trainer and engine; null: no bound. */
  readonly logprobMaxBound: number | null;
  /** Largest mean difference; null: no bound. */
  readonly logprobMeanBound: number | null;
  /** Logprobs are compared within bounds that nothing keeps where trainer or engine round to 16 bits. */
  readonly needsFloat32: boolean;
}

/** Milliseconds that each wait may last. */
export interface Deadlines {
  /** From the start until every engine is ready and every rank has sent its manifest. */
  readonly startMs: number;
  /** One stay in training, until the first rank arrives; and, once a rank is finished, until all are. */
  readonly trainMs: number;
  /** From the first rank that arrives, calls `generate` or leaves until the others have done so too. */
  readonly arriveMs: number;
  readonly releaseMs: number;
  /** How long room that must be there may take to show in NVML. */
  readonly roomMs: number;
  readonly wakeMs: number;
  readonly planMs: number;
  /** Export of the segments, the sync itself, the sums of what was taken, comparing those: each. */
  readonly syncMs: number;
  /** While generating: since the last token that an engine reported. */
  readonly generateIdleMs: number;
  /** A rollout in which no request is open: the script has completions and neither asks for more nor leaves. */
  readonly rolloutMs: number;
  readonly sleepMs: number;
  readonly resumeMs: number;
  /** Ending the processes of a run. Kept by the shell. */
  readonly stopMs: number;
}

/** First GPU of engine `engine`; its workers are on this one and the next ones. */
export function firstGpu(config: PhaseConfig, engine: number): number {
  return engine * config.tensorParallel;
}

/** GPUs of engine `engine`, by tensor-parallel rank. */
export function engineGpus(config: PhaseConfig, engine: number): number[] {
  const first = firstGpu(config, engine);
  return Array.from({ length: config.tensorParallel }, (_, worker) => first + worker);
}

/** The engine with a worker on this GPU, or null. */
export function engineOnGpu(config: PhaseConfig, gpu: number): number | null {
  const engine = Math.floor(gpu / config.tensorParallel);
  return engine < config.engines ? engine : null;
}

/** The engine that generates for local rank `rank`. */
export function engineOfRank(config: PhaseConfig, ranks: number, rank: number): number {
  return Math.floor(rank / (ranks / config.engines));
}
