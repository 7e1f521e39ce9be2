/** The figures of one part and its peer. */
import type { Layout } from "./plan.js";
import type { PartResult } from "./results.js";
import { type GpuRow, gpuRow, once, type Spread, spread } from "./row.js";

export const MIB = 2 ** 20;
export const GIB = 2 ** 30;
/** Milliseconds of a second. */
export const MS = 1000;

/** A row, as far as it is not the same for all rows of a pair. */
export type Metric = Omit<Parameters<typeof gpuRow>[0], "subject" | "shape" | "simulated" | "failure">;

/** One part and its peer. */
export interface Pair {
  readonly ours: PartResult | null;
  readonly stock: PartResult | null;
}

/** Nothing for one GPU. */
export function layoutText({ gpus, engines, tensorParallel }: Layout): string {
  if (gpus === 1) return "";
  if (engines === 0) return `, ${gpus} GPUs`;
  const tp = `TP=${tensorParallel}`;
  return `, ${gpus} GPUs, ${engines === 1 ? tp : `${engines} engines of ${tp}`}`;
}

const sameGpu = ({ ours, stock }: Pair): boolean =>
  ours?.record?.machine?.uuid === stock?.record?.machine?.uuid &&
  ours?.record?.machine?.driver === stock?.record?.machine?.driver;

/** Reads samples and values of one pair. */
export class Figures {
  readonly #pair: Pair;

  constructor(pair: Pair) {
    this.#pair = pair;
  }

  /** GPUs of this pair. */
  get gpus(): number {
    return (this.#pair.ours ?? this.#pair.stock)?.part.layout.gpus ?? 1;
  }

  ours = (name: string, scale = 1): Spread | null => spread(this.samples("ours", name), scale);
  peer = (name: string, scale = 1): Spread | null => spread(this.samples("stock", name), scale);
  oursOnce = (name: string, scale = 1): Spread | null => once(this.value(name), scale);

  samples(side: "ours" | "stock", name: string): readonly number[] | undefined {
    if (side === "stock" && !sameGpu(this.#pair)) return undefined;
    return this.#pair[side]?.record?.samples[name];
  }

  value(name: string): unknown {
    return this.#pair.ours?.record?.values[name];
  }

  number(name: string): number | null {
    const value = this.value(name);
    return typeof value === "number" ? value : null;
  }

  /** Bytes a second, cycle by cycle, in GB. */
  rate(side: "ours" | "stock", bytes: string, seconds: string): Spread | null {
    const amount = this.samples(side, bytes);
    const time = this.samples(side, seconds);
    if (amount === undefined || time === undefined) return null;
    return spread(time.map((value, cycle) => (amount[cycle] ?? 0) / value / 1e9));
  }

  /**
   * Sums of several samples, cycle by cycle. Of each of `beyond` only what goes beyond so many seconds is added, if
   * anything does: what goes on beside something else costs no less than nothing. Not known when one of them is not.
   */
  sum(
    side: "ours" | "stock",
    names: readonly string[],
    scale: number,
    beyond: readonly { readonly name: string; readonly seconds: number | null }[] = [],
  ): Spread | null {
    const all = [
      ...names.map((name) => this.samples(side, name)),
      ...beyond.map(({ name, seconds }) =>
        seconds === null ? undefined : this.samples(side, name)?.map((taken) => Math.max(0, taken - seconds)),
      ),
    ];
    if (all.some((one) => one === undefined)) return null;
    const cycles = Math.min(...all.map((one) => one?.length ?? 0));
    const totals = Array.from({ length: cycles }, (_, cycle) =>
      all.reduce((total, one) => total + (one?.[cycle] ?? 0), 0),
    );
    return spread(totals, scale);
  }

  /** What makes ours and the peer less alike than they should be. */
  #remarks(): string {
    const { ours, stock } = this.#pair;
    if (ours === null || stock === null) return "";
    const elsewhere = sameGpu(this.#pair) ? "" : "; the peer ran on another GPU, so it is left out";
    const otherwise = ours.graphs === stock.graphs ? "" : `; CUDA graphs: ${ours.graphs}, of the peer: ${stock.graphs}`;
    return elsewhere + otherwise;
  }

  /** Rows of those metrics that were measured. */
  rows(subject: string, metrics: readonly Metric[]): GpuRow[] {
    const any = this.#pair.ours;
    if (any === null) return [];
    const simulated = any.record?.machine?.simulated ?? false;
    const remarks = this.#remarks();
    const where = subject + layoutText(any.part.layout);
    return metrics
      .filter(({ ours }) => ours !== null)
      .map((metric) =>
        gpuRow({ ...metric, note: metric.note + remarks, subject: where, shape: any.part.shape, simulated }),
      );
  }
}
