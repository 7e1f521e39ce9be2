/** Whether many handoffs in a row stay as they are: no slower, and nothing that grows. */
import { percentile } from "../row.js";
import { type Figures, type Metric, MIB } from "./figures.js";
import { atMost, once } from "./row.js";

/** The first cycles of a process are no measure of the later ones. */
const WARM_CYCLES = 10;
/** Fewer say nothing of a drift. */
const LEAST_CYCLES = 100;
const DRIFT_PERCENT = 5;
/** Of one handoff against another, at the same place of the loop: allocators round. */
const GROWTH_MIB = 16;

const TIMES: readonly (readonly [string, string])[] = [
  ["training to first tokens", "to first tokens seconds"],
  ["generation to first forward pass", "to first forward seconds"],
  ["the training step", "step seconds"],
];
const SIZES: readonly (readonly [string, string])[] = [
  ["GPU memory while generating", "used while generating bytes"],
  ["GPU memory while training", "used while training bytes"],
  ["host memory of a rank", "resident bytes"],
  ["live memory of the pool", "pool live bytes"],
];

/** Rows of drift and growth; none for a part of few cycles. */
export function longRunMetrics(figures: Figures): Metric[] {
  const cycles = figures.samples("ours", "to first tokens seconds")?.length ?? 0;
  if (cycles < LEAST_CYCLES) return [];
  const drifts = TIMES.map(([what, name]): Metric => {
    const [early, late] = thirds(figures.samples("ours", name));
    return {
      metric: `${cycles} handoffs: ${what} drifts by`,
      unit: "%",
      better: "lower",
      ours: once(early === undefined || late === undefined ? null : (median(late) / median(early) - 1) * 100),
      goal: atMost(DRIFT_PERCENT, `at most ${DRIFT_PERCENT}%`),
      note: "medians of the last third and the first, after ten that warm up",
    };
  });
  const growths = SIZES.map(([what, name]): Metric => {
    const [early, late] = thirds(figures.samples("ours", name));
    return {
      metric: `${cycles} handoffs: ${what} grows by`,
      unit: "MiB",
      better: "lower",
      ours: once(early === undefined || late === undefined ? null : (Math.max(...late) - Math.max(...early)) / MIB),
      goal: atMost(GROWTH_MIB, "no growth (16 MiB)"),
      note: "largest of the last third and of the first, after ten that warm up",
    };
  });
  return [...drifts, ...growths];
}

/** The first and the last third of the samples that count. */
function thirds(samples: readonly number[] | undefined): [readonly number[], readonly number[]] | [] {
  if (samples === undefined) return [];
  const third = Math.floor((samples.length - WARM_CYCLES) / 3);
  return [samples.slice(WARM_CYCLES, WARM_CYCLES + third), samples.slice(-third)];
}

const median = (samples: readonly number[]): number => percentile(samples, 0.5);
