/** How far two trainings that ought to be the same are apart: one JSON line a comparison, in the file that BATON_FIGURES names. */
import { appendFileSync } from "node:fs";
import { expect } from "vitest";
import type { Log } from "./trl.js";

/** What is of the clock, and differs always. */
export const CLOCKS = /runtime|_per_second|step_time/;

/** Rounding, which a learning rate of 1e-3 tears apart slowly. */
export const mayDiffer = (value: number): number => 1e-5 + 1e-3 * Math.abs(value);

/** Of all lines of a log: the largest value, and by how much the other's differ. */
interface Apart {
  readonly largest: number;
  readonly difference: number;
  /** Of the difference to its own value. */
  readonly relative: number;
}

function apart(one: Log, other: Log, name: string): Apart {
  const pairs = one.flatMap((line, position) =>
    line[name] === undefined ? [] : [[line[name], other[position]?.[name] ?? Number.NaN] as const],
  );
  const most = (of: (value: number, found: number) => number): number => Math.max(...pairs.map((pair) => of(...pair)));
  return {
    largest: most(Math.abs),
    difference: most((value, found) => Math.abs(value - found)),
    relative: most((value, found) => (value === found ? 0 : Math.abs((value - found) / value))),
  };
}

/** Appends what `one` and `other` differ by, under the name of the test that runs. */
export function recordComparison(one: Log, other: Log): void {
  const file = process.env.BATON_FIGURES;
  if (file === undefined || file === "") return;
  const names = [...new Set(one.flatMap((line) => Object.keys(line)))].filter((name) => !CLOCKS.test(name));
  const shares = names.flatMap((name) =>
    one.map((line, position): [number, string] => {
      const value = line[name];
      if (value === undefined) return [0, name];
      return [Math.abs((other[position]?.[name] ?? Number.NaN) - value) / mayDiffer(value), name];
    }),
  );
  const figures = {
    test: expect.getState().currentTestName,
    steps: one.filter((line) => line.loss !== undefined).length,
    figures: names.length,
    loss: apart(one, other, "loss"),
    ...(names.includes("grad_norm") ? { gradNorm: apart(one, other, "grad_norm") } : {}),
    /** The worst of all figures, as a share of what it may differ by. */
    worst: shares.reduce((worst, each) => (each[0] > worst[0] ? each : worst), [0, "none"]),
  };
  appendFileSync(file, `${JSON.stringify(figures)}\n`);
}
