/** What an evaluation has found, for people. */
import { relative } from "node:path";
import { z } from "zod";

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
  seconds: z.object({ total: z.number(), generate: z.number() }),
  tokensPerSecond: z.number(),
  out: z.string(),
});
export type EvaluationSummary = z.infer<typeof evaluationSummary>;

export function evaluationReport(found: EvaluationSummary): string {
  const { completions, engine, sampling, seconds, passAtK, interval } = found;
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
    [
      "time",
      `${seconds.total.toFixed(1)} s, of which ${seconds.generate.toFixed(1)} s generating: ${found.tokensPerSecond.toFixed(0)} tokens/s`,
    ],
  ];
  if (completions.notJudged > 0) {
    rows.push(["not judged", `${completions.notJudged} completions, counted as wrong: ${completions.firstFailure}`]);
  }
  const width = Math.max(...rows.map(([name]) => name.length));
  const lines = rows.map(([name, text]) => `${name.padEnd(width)}  ${text}`);
  return `${lines.join("\n")}\nevery completion is in ${near(found.out)}/results.jsonl\n`;
}

function percent(value: number | null, digits = 1): string {
  return value === null ? "unknown" : `${(100 * value).toFixed(digits)} %`;
}

/** A path as it is shortest from here. */
function near(path: string): string {
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}
