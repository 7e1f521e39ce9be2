/** What an evaluation has found, for people. */
import { relative } from "node:path";
import { z } from "zod";

/** Share of completions: figures with more that were cut off say little about the model. */
const MANY_CUT_OFF = 0.05;

const share = z.number().nullable();

export const evaluationSummary = z.object({
  data: z.string(),
  model: z.object({ folder: z.string(), kind: z.string(), dtype: z.string() }),
  engine: z.object({ version: z.string(), engines: z.int(), tensorParallel: z.int() }),
  sampling: z.object({ samples: z.int(), temperature: z.number(), maxTokens: z.int() }),
  problems: z.int(),
  passAtK: z.array(z.object({ k: z.int(), value: share, low: share, high: share })),
  interval: z.object({ confidence: z.number() }),
  completions: z.object({
    count: z.int(),
    truncated: share,
    withoutAnswer: share,
    notJudged: z.int(),
    firstFailure: z.string().nullable(),
    meanTokens: share,
  }),
  /** Completions that an evaluation before this one had made. */
  resumedFrom: z.int(),
  /** null: there was nothing left to generate. */
  seconds: z.object({ total: z.number(), generate: z.number().nullable() }),
  tokensPerSecond: z.number().nullable(),
  out: z.string(),
});
export type EvaluationSummary = z.infer<typeof evaluationSummary>;

export function evaluationReport(found: EvaluationSummary): string {
  const { completions, engine, sampling, passAtK, interval } = found;
  const engines = engine.engines > 1 ? `, ${engine.engines} engines` : "";
  const tp = engine.tensorParallel > 1 ? `, tensor parallelism ${engine.tensorParallel}` : "";
  const rows: (readonly [string, string])[] = [
    ["model", `${near(found.model.folder)} (${found.model.dtype}; ${engine.version}${engines}${tp})`],
    [
      "data",
      `${near(found.data)}: ${found.problems} problems, ${sampling.samples} each at temperature ${sampling.temperature}`,
    ],
    ...passAtK.map(
      ({ k, value, low, high }) =>
        [
          `pass@${k}`,
          `${percent(value)}   ${percent(interval.confidence, 0)} interval ${percent(low)} to ${percent(high)}`,
        ] as const,
    ),
    ["cut off", `${percent(completions.truncated)} (after ${sampling.maxTokens} tokens)`],
    ["without answer", percent(completions.withoutAnswer)],
    ["length", completions.meanTokens === null ? "unknown" : `${completions.meanTokens.toFixed(1)} tokens, mean`],
    ["time", time(found)],
  ];
  if (completions.notJudged > 0) {
    rows.push(["not judged", `${completions.notJudged} completions, counted as wrong: ${completions.firstFailure}`]);
  }
  if (completions.truncated !== null && completions.truncated > MANY_CUT_OFF) {
    const text = `${percent(completions.truncated)} of the completions were cut off, and count as wrong unless they had answered by then: raise --max-tokens`;
    rows.push(["warning", text]);
  }
  const width = Math.max(...rows.map(([name]) => name.length));
  const lines = rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`);
  return `${lines.join("\n")}\nevery completion is in ${near(found.out)}/results.jsonl\n`;
}

function time({ seconds, tokensPerSecond, resumedFrom, completions }: EvaluationSummary): string {
  const total = `${seconds.total.toFixed(1)} s`;
  const earlier = resumedFrom > 0 ? `; ${resumedFrom} of ${completions.count} completions are from before` : "";
  if (seconds.generate === null || tokensPerSecond === null) return `${total}${earlier}`;
  return `${total}, of which ${seconds.generate.toFixed(1)} s generating: ${tokensPerSecond.toFixed(0)} tokens/s${earlier}`;
}

function percent(value: number | null, digits = 1): string {
  return value === null ? "unknown" : `${(100 * value).toFixed(digits)} %`;
}

/** A path as it is shortest from here. */
function near(path: string): string {
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}
