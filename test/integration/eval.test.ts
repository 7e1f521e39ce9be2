import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { Baton, processesWith, root, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { python } from "./light.js";

const model = join(root, "python/src/baton/examples/tiny_model");
const data = join(root, "examples/data/sums-held-out.jsonl");

function evaluation(folder: string, ...words: string[]): Baton {
  const own = ["eval", "--model", model, "--data", data, "--out", join(folder, "out")];
  // The last of an option that is given twice counts.
  const environment = { BATON_PYTHON: python, CUDA_VISIBLE_DEVICES: "", BATON_CACHE: join(folder, "cache") };
  return new Baton(folder, [...own, ...words], environment);
}

describe("baton eval", { timeout: 120_000 }, () => {
  it("says how often a model answers right, and leaves every completion", async () => {
    await withFolder(async (folder) => {
      const baton = evaluation(folder, "--limit", "64", "--samples", "4", "--k", "1,2,4", "--seed", "3");
      const { code, output } = await baton.ended;
      expect(code, output).toBe(0);
      for (const name of ["pass@1", "pass@2", "pass@4"])
        expect(output).toMatch(new RegExp(`^${name} +\\d+\\.\\d %`, "m"));
      expect(output).toContain("95 % interval");
      // What only training needs is not compiled.
      expect(existsSync(join(folder, "cache"))).toBe(false);
      const summary = JSON.parse(readFileSync(join(baton.out, "summary.json"), "utf8"));
      const [one, two, four] = summary.passAtK;
      expect(one.low).toBeLessThan(one.value);
      expect(one.value).toBeLessThan(two.value);
      expect(two.value).toBeLessThan(four.value);
      const lines = readFileSync(join(baton.out, "results.jsonl"), "utf8").trimEnd().split("\n");
      const correct = lines.map((line) => (JSON.parse(line) as { correct: number }).correct);
      expect(correct.length).toBe(64);
      expect(one.value).toBeCloseTo(correct.reduce((sum, each) => sum + each) / 256, 10);
      expect(processesWith(folder)).toEqual([]);
    });
  });

  it("refuses what it cannot do, before an engine is started", async () => {
    await withFolder(async (folder) => {
      writeFileSync(join(folder, "bare.jsonl"), '{"problem": "1+1="}\n');
      for (const [words, code] of [
        [["--data", join(folder, "bare.jsonl")], "DATA_COLUMN_MISSING"],
        [["--model", folder], "MODEL_NOT_FOUND"],
        [["--samples", "2", "--temperature", "0"], "BAD_OPTIONS"],
      ] as const) {
        const baton = evaluation(folder, ...words, "--json");
        const { code: exit, output } = await baton.ended;
        expect(exit, output).toBe(1);
        expect(output).toContain(`${code}: `);
        expect(output).toContain("  action: ");
        expect(existsSync(baton.out)).toBe(false);
      }
      const { code, output } = await evaluation(folder, "--k", "one").ended;
      expect([code, output]).toEqual([1, expect.stringContaining("'--k <list>' argument 'one' is invalid")]);
    });
  });

  it("leaves no process behind when it is interrupted, or killed, and what it has done is not lost", async () => {
    for (const signal of ALL ? (["SIGINT", "SIGKILL"] as const) : (["SIGINT"] as const)) {
      await withFolder(async (folder) => {
        const words = ["--limit", "8", "--samples", "200"];
        const baton = evaluation(folder, ...words);
        const part = join(baton.out, "results.part.jsonl");
        const lines = (): number => (existsSync(part) ? readFileSync(part, "utf8").split("\n").length - 2 : 0);
        while (lines() < 1 && baton.process.exitCode === null) await sleep(20);
        expect(processesWith(folder).length, baton.output).toBeGreaterThan(1);
        baton.process.kill(signal);
        const ended = await baton.ended;
        if (signal === "SIGINT") expect(ended.code, ended.output).toBe(130);
        await expect.poll(() => processesWith(folder), { timeout: 10_000 }).toEqual([]);
        const kept = lines();
        expect(kept).toBeLessThan(1600);
        if (signal === "SIGKILL") return;
        const { code, output } = await evaluation(folder, ...words).ended;
        expect(code, output).toBe(0);
        expect(output).toContain(`${kept} of 1600 completions are from before`);
      });
    }
  });
});
