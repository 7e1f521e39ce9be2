import type { Scenario } from "./scenario.js";

/**
 * The GPUs' memory, at its worst: what may be mapped counts from the moment it is commanded, what is given back
 * counts until the process has done it.
 */
export class Memory {
  readonly parameters: number[];
  readonly optimizer: number[];
  private readonly weights: number[];
  private readonly cache: number[];

  constructor(private readonly scenario: Scenario) {
    const gpus = Math.max(scenario.ranks, scenario.engines * scenario.tensorParallel);
    const none = () => Array.from({ length: gpus }, () => 0);
    [this.parameters, this.optimizer, this.weights, this.cache] = [none(), none(), none(), none()];
    // An engine starts awake.
    for (let engine = 0; engine < scenario.engines; engine++) this.wake(engine, ["weights", "kv_cache"]);
  }

  get gpus(): number {
    return this.weights.length;
  }

  freeBytes(gpu: number): number {
    const used = [this.parameters, this.optimizer, this.weights, this.cache].map((part) => part[gpu] ?? 0);
    return this.scenario.gpuBytes - used.reduce((sum, bytes) => sum + bytes, 0);
  }

  engineGpus(engine: number): number[] {
    const { tensorParallel } = this.scenario;
    return Array.from({ length: tensorParallel }, (_, worker) => engine * tensorParallel + worker);
  }

  wake(engine: number, tags: readonly string[]): void {
    for (const gpu of this.engineGpus(engine)) {
      if (tags.includes("weights")) this.weights[gpu] = this.scenario.weightBytes;
      if (tags.includes("kv_cache")) this.cache[gpu] = this.scenario.cacheBytes;
    }
  }

  engineStarted(engine: number): void {
    this.engineSleeps(engine);
  }

  engineSleeps(engine: number): void {
    for (const gpu of this.engineGpus(engine)) {
      this.weights[gpu] = 0;
      this.cache[gpu] = 0;
    }
  }

  engineIsEmpty(gpu: number): boolean {
    return this.weights[gpu] === 0 && this.cache[gpu] === 0;
  }

  /** A rank builds its training state, or takes it back. */
  fill(rank: number): void {
    this.parameters[rank] = this.scenario.parameterBytes;
    this.optimizer[rank] = this.scenario.optimizerBytes;
  }

  release(rank: number, stage: "optimizer" | "all", wantBytes: number | null): number {
    let released = Math.min(this.optimizer[rank] ?? 0, wantBytes ?? Number.POSITIVE_INFINITY);
    this.optimizer[rank] = (this.optimizer[rank] ?? 0) - released;
    if (stage === "all") {
      const more = Math.min(this.parameters[rank] ?? 0, (wantBytes ?? Number.POSITIVE_INFINITY) - released);
      this.parameters[rank] = (this.parameters[rank] ?? 0) - more;
      released += more;
    }
    return released;
  }

  hasParameters(rank: number): boolean {
    return this.parameters[rank] === this.scenario.parameterBytes;
  }

  /** Everything of a killed process is free. */
  forgetRank(rank: number): void {
    this.parameters[rank] = 0;
    this.optimizer[rank] = 0;
  }
}
