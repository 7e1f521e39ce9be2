/** `baton bench` as a user starts it. How fast it is is no test: two cores that are busy would fail it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { BenchRow } from "../../src/bench/row.js";
import { Baton, withFolder } from "./baton.js";
import { python } from "./light.js";

it("the bench prints its table and writes the same figures as JSON", async () => {
  await withFolder(async (folder) => {
    const file = join(folder, "bench.json");
    const words = ["bench", "--json", file, "--only", "sampler"];
    const ended = await new Baton(folder, words, { BATON_PYTHON: python }).ended;
    expect(ended.code, ended.output).toBe(0);
    const rows = JSON.parse(readFileSync(file, "utf8")) as BenchRow[];
    expect(rows.map(({ subject }) => subject)).toEqual(["sampler"]);
    for (const row of rows) {
      expect(Object.keys(row)).toEqual(
        expect.arrayContaining([
          "subject",
          "metric",
          "unit",
          "ours",
          "peer",
          "limit",
          "ratioToPeer",
          "ratioToLimit",
          "simulated",
          "goal",
          "met",
        ]),
      );
      expect(row.ours).toBeGreaterThan(0);
      expect(row.peer).toBeGreaterThan(0);
      expect(row.met).toBe((row.ratioToLimit as number) >= (row.goal as number));
      expect(ended.output).toContain(row.metric);
    }
    expect(rows.every(({ simulated }) => simulated)).toBe(true);
  });
});
