import { describe, expect, it } from "vitest";
import { type EvaluationSummary, evaluationReport } from "../../src/cli/eval-report.js";

const SUMMARY: EvaluationSummary = {
  data: "/data/aime.jsonl",
  model: { folder: "/models/qwen", kind: "model", dtype: "bfloat16" },
  engine: { version: "vLLM 0.26", engines: 4, tensorParallel: 2 },
  sampling: { samples: 16, temperature: 0.6, maxTokens: 8192 },
  problems: 30,
  passAtK: [
    { k: 1, value: 0.4125, low: 0.301, high: 0.5333 },
    { k: 16, value: null, low: null, high: null },
  ],
  interval: { confidence: 0.95 },
  completions: { count: 480, truncated: 0.05, withoutAnswer: 0, notJudged: 0, firstFailure: null, meanTokens: 812.25 },
  resumedFrom: 0,
  seconds: { total: 95.2, generate: 61.1 },
  tokensPerSecond: 6380.5,
  out: "/out/eval",
};

describe("the report of an evaluation", () => {
  it("shows pass@k with its interval, and what lies behind it", () => {
    expect(evaluationReport(SUMMARY).split("\n")).toEqual([
      "model           /models/qwen (bfloat16; vLLM 0.26, 4 engines, tensor parallelism 2)",
      "data            /data/aime.jsonl: 30 problems, 16 each at temperature 0.6",
      "pass@1          41.3 %   95 % interval 30.1 % to 53.3 %",
      "pass@16         unknown   95 % interval unknown to unknown",
      "cut off         5.0 % (after 8192 tokens)",
      "without answer  0.0 %",
      "length          812.3 tokens, mean",
      "time            95.2 s, of which 61.1 s generating: 6381 tokens/s",
      "every completion is in /out/eval/results.jsonl",
      "",
    ]);
  });

  it("warns where many completions were cut off", () => {
    const completions = { ...SUMMARY.completions, truncated: 0.0625 };
    expect(evaluationReport({ ...SUMMARY, completions })).toMatch(
      /^warning +6\.3 % of the completions .*--max-tokens$/m,
    );
  });

  it("says what was made before, and knows no speed where nothing was left to make", () => {
    const seconds = { total: 2, generate: null };
    const resumed = { ...SUMMARY, resumedFrom: 480, seconds, tokensPerSecond: null };
    expect(evaluationReport(resumed)).toMatch(/^time +2\.0 s; 480 of 480 completions are from before$/m);
  });

  it("says which completions could not be judged", () => {
    const completions = { ...SUMMARY.completions, notJudged: 2, firstFailure: "it died" };
    expect(evaluationReport({ ...SUMMARY, completions })).toContain("2 completions, counted as wrong: it died");
  });
});
