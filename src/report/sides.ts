/** What each side has of the GPUs, as the progress line shows it. */
import { Ledger } from "../memory/index.js";
import type { MemoryEvent, RunEvent } from "./events.js";
import { bars, shortBytes } from "./figures.js";
import { enter } from "./ledger.js";

export const SIDES = ["training", "engine"] as const;
export type Side = (typeof SIDES)[number];

/** Bytes by GPU. What is in use and not the engine's counts as training's: processes and activations are its own. */
export type Shares = Readonly<Record<Side, readonly number[]>>;

/** Feed it every event of a run. */
export class GpuSides {
  #gpuBytes: readonly number[] = [];
  #ledger = new Ledger(0);
  /** Most that was in use on any GPU: bars are shares of it, since of a large GPU a small model would show nothing. */
  #most = 1;
  /** As last measured; null: not yet. */
  now: Shares | null = null;
  /** What training had while it trained and the engine while it generated, since `next`. */
  #inTurn: Partial<Record<Side, readonly number[]>> = {};

  see(event: RunEvent): void {
    if (event.type === "started") {
      this.#gpuBytes = event.gpuBytes;
      this.#ledger = new Ledger(event.topology.gpus);
    }
    enter(this.#ledger, event, this.#gpuBytes);
    if (event.type === "memory") this.#measured(event);
    // One engine may sleep while another generates, so what it had is not what it has at the end of the phase.
    if (event.type === "awake") {
      const awake = new Set(event.gpus);
      const bytes = this.#gpuBytes.map((_, gpu) => (awake.has(gpu) ? this.#ledger.engineBytes(gpu) : 0));
      this.#turn("engine", bytes);
    }
  }

  /** What is shown of a step, of each side in its turn; empty where it had none. */
  get inTurn(): Partial<Shares> {
    return this.#inTurn;
  }

  next(): void {
    this.#inTurn = {};
  }

  /** `▅▅▅▅ 6.0 MiB`: a bar a GPU, and the largest of them. */
  picture(bytes: readonly number[]): string {
    return `${bars(bytes.map((each) => each / this.#most))} ${shortBytes(Math.max(0, ...bytes))}`;
  }

  /** `6.0/8.0 MiB`: the largest of each side that is given. */
  figures(shares: Partial<Shares>): string {
    const texts = SIDES.flatMap((side) => (shares[side] ? [shortBytes(Math.max(0, ...shares[side]))] : []));
    const [first = "", second] = texts;
    if (second === undefined) return first;
    const unit = second.slice(second.indexOf(" "));
    return `${first.endsWith(unit) ? first.slice(0, -unit.length) : first}/${second}`;
  }

  #measured({ phase, usedBytes, peakBytes }: MemoryEvent): void {
    this.#most = Math.max(this.#most, ...peakBytes);
    this.now = this.#shares(usedBytes);
    if (phase === "train") this.#turn("training", this.#shares(peakBytes).training);
  }

  #turn(side: Side, bytes: readonly number[]): void {
    const before = this.#inTurn[side] ?? [];
    this.#inTurn[side] = bytes.map((each, gpu) => Math.max(each, before[gpu] ?? 0));
  }

  #shares(usedBytes: readonly number[]): Shares {
    const engine = usedBytes.map((used, gpu) => Math.min(used, this.#ledger.engineBytes(gpu)));
    return { engine, training: usedBytes.map((used, gpu) => used - (engine[gpu] ?? 0)) };
  }
}
