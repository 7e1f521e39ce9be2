/** What a dry run says at its end: what was run, what was made smaller, what that proves and what not. */
import { relative } from "node:path";
import type { Recipe } from "../recipe/index.js";
import { shortBytes } from "../report/figures.js";
import type { Summary } from "../report/summary.js";

/** What, from, to. */
export type Change = [string, unknown, unknown];

export interface DryRun {
  readonly real: Recipe;
  /** Of the dry run. */
  readonly recipe: Recipe & { readonly ranks: number };
  readonly made: {
    readonly section: Readonly<Record<string, unknown>>;
    readonly changes: readonly Change[];
    readonly kept: readonly string[];
    readonly notes: readonly string[];
  };
  readonly summary: Summary;
  /** Whether the recipe was also looked at with the real model's folder. */
  readonly checked: boolean;
  readonly file: string;
  /** Folder of the shape. */
  readonly config: string;
}

/** Lines for a terminal. */
export function dryRunReport({ real, recipe, made, summary, checked, file, config }: DryRun): string[] {
  const { engine, gpus, ranks } = recipe;
  const { checks, handoffs } = summary;
  const peak = Math.max(0, ...summary.gpus.map((gpu) => gpu.peakBytes ?? 0));
  const difference = checks.maxLogprobDifference;
  const fits = [
    ...[
      "baton doctor --model",
      relative(process.cwd(), config) || ".",
      "--ranks",
      ranks,
      "--tp",
      engine.tensorParallel,
    ],
    ...["--zero", summary.topology.zeroStage ?? 2, "--max-model-length", real.engine.maxModelLength],
    ...["--max-sequences", real.engine.maxSequences],
  ];
  return [
    `the dry run of ${relative(process.cwd(), file)} went through`,
    "as in the recipe:",
    `  ${counted(ranks, "rank")} on ${counted(gpus.count, "GPU")}, ${counted(engine.engines, "engine")} with tensor parallelism ${engine.tensorParallel}, ${engine.dtype}`,
    ...made.kept.map((line) => `  ${line}`),
    "smaller, or in the place of something else:",
    `  GPUs: stand-ins, ${shortBytes(peak)} of each in use at most`,
    ...made.changes.map(([what, from, to]) => `  ${what}: ${plain(from)} -> ${plain(to)}`),
    "checked:",
    `  ${checks.weightChecksumsPassed} checksums of weights, ${checks.weightChecksumsFailed} wrong, in ${counted(handoffs.toGeneration, "handoff")}`,
    ...(difference === null ? [] : [`  logprobs of trainer and engine, at most ${difference.toPrecision(2)} apart`]),
    checked
      ? "  options, model folder, all problems with the model's own tokenizer, and reward functions, as for a real run"
      : "  options and reward functions; not the problems' tokens: model, tokenizer and data are not all there yet",
    ...(made.notes.length === 0 ? [] : ["to know:", ...made.notes.map((line) => `  ${line}`)]),
    "not shown by this:",
    `  memory at full size: \`${fits.join(" ")}\` works it out`,
    "  speed, vLLM and NCCL on real GPUs, and whether the policy learns",
  ];
}

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;

function plain(value: unknown): string {
  if (typeof value === "number") return value >= 10_000 ? value.toLocaleString("en") : String(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}
