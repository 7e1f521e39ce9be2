/** Handoffs of runs on several GPUs, part by part and GPU by GPU. */

import { percentile } from "../row.js";
import { layoutText } from "./figures.js";
import type { PartResult, RunFigures } from "./results.js";
import { spread } from "./row.js";
import { cell, number, table } from "./text.js";

const GIB = 2 ** 30;

/** Nothing for a single GPU, or where there was no run. */
export function runTables(results: readonly PartResult[]): string[] {
  return results.flatMap(({ part, run, record }) => {
    if (run === null || part.layout.gpus === 1) return [];
    const simulated = record?.machine?.simulated === true ? " (simulated)" : "";
    return [
      `### handoff ${part.variant}${layoutText(part.layout)}, ${part.shape}${simulated}`,
      "",
      checksLine(run),
      "",
      phases(run),
      "",
      moves(run),
      "",
      ledger(run),
      "",
    ];
  });
}

function checksLine({ checks }: RunFigures): string {
  const { passed, failed, fallbacks } = checks;
  const fallback = fallbacks > 0 ? `; ${fallbacks} notes of a fallback to load_weights` : "";
  return `Weights: ${passed} tensors equal by checksum, ${failed} not${fallback}.`;
}

/** Milliseconds of each phase of the controller: first; p50 / p95 of the later ones. */
function phases({ phases: found }: RunFigures): string {
  const lines = Object.entries(found).map(([name, seconds]) => [
    name,
    cell(spread(seconds, 1000)),
    String(seconds.length),
  ]);
  return table(["phase", "ms", "handoffs"], lines);
}

function moves({ gpus, left }: RunFigures): string {
  const gib = (values: readonly number[]): string =>
    values.length === 0 ? "-" : number(percentile(values, 0.5) / GIB);
  const lines = gpus.map((one) => {
    const rates = one.pulledBytes.map((bytes, at) => bytes / (one.pullSeconds[at] ?? 0) / 1e9).filter(Number.isFinite);
    const sides = left.find(({ gpu }) => gpu === one.gpu);
    const ofSide = (bytes: number | null | undefined): string => (bytes == null ? "-" : number(bytes / GIB));
    return [
      String(one.gpu),
      gib(one.releasedBytes),
      gib(one.savedBytes),
      gib(one.returnedBytes),
      gib(one.pulledBytes),
      rates.length === 0 ? "-" : number(percentile(rates, 0.5)),
      ofSide(sides?.trainingBytes),
      ofSide(sides?.engineBytes),
    ];
  });
  const left2 = "left by training while generating, GiB";
  const left3 = "left by the engine while training, GiB";
  return table(["GPU", "released, GiB", "of that saved", "returned", "weights pulled", "at GB/s", left2, left3], lines);
}

function ledger({ ledger: found }: RunFigures): string {
  const gpus = found[0]?.usedBytes.length ?? 0;
  const lines = found.map(({ phase, usedBytes, peakBytes }) => [
    phase,
    ...usedBytes.map((bytes, gpu) => `${number(bytes / GIB)} (${number((peakBytes[gpu] ?? 0) / GIB)})`),
  ]);
  const titles = Array.from({ length: gpus }, (_, gpu) => `GPU ${gpu}`);
  return table(["in use at the end of a phase (the most in it), GiB", ...titles], lines);
}
