/** Whole runs that go well. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { processesWith, withFolder } from "./baton.js";
import { lightRun } from "./light.js";

describe("a run", () => {
  it("hands the GPUs over and back, proves the weights, and leaves nothing", async () => {
    await withFolder(async (folder) => {
      const baton = lightRun(folder, { steps: 3 });
      const ended = await baton.ended;
      expect(ended.output + readLog(baton.out)).not.toContain("Traceback");
      expect(ended).toMatchObject({ code: 0, signal: null });
      const summary = baton.summary();
      expect(summary).toMatchObject({
        simulated: true,
        topology: { gpus: 2, ranks: 2, engines: 1, tensorParallel: 1, zeroStage: 2 },
        batches: 3,
        handoffs: { toGeneration: 3, toTraining: 3 },
        weightEpoch: 3,
        checks: { weightChecksumsFailed: 0 },
        reward: { first: 0.1, last: 0.3 },
        left: { processes: 0, deviceBytes: 0 },
        exit: { reason: "finished", code: 0 },
      });
      expect(summary.checks.weightChecksumsPassed).toBeGreaterThan(0);
      for (const gpu of summary.gpus) {
        expect(gpu.trainingReleasedBytes).toBeGreaterThanOrEqual(16 * 2 ** 20);
        expect(gpu.leftByTrainingBytes).toBe(0);
      }
      const trace = JSON.parse(readFileSync(join(baton.out, "trace.json"), "utf8")) as {
        traceEvents: { ph: string }[];
      };
      expect(trace.traceEvents.filter(({ ph }) => ph === "X").length).toBeGreaterThan(30);
      expect(eventsOf(baton.events(), "exit")).toHaveLength(1);
      expect(processesWith(folder)).toEqual([]);
    });
  });

  it("goes on when nobody reads what it prints any more", async () => {
    await withFolder(async (folder) => {
      const baton = lightRun(folder, { steps: 3, pauseSeconds: 0.05 });
      await baton.event((one) => one.type === "phase" && one.to === "generate");
      for (const stream of [baton.process.stdout, baton.process.stderr]) stream?.destroy();
      expect(await baton.ended).toMatchObject({ code: 0, signal: null });
      expect(baton.summary()).toMatchObject({ weightEpoch: 3, exit: { reason: "finished", code: 0 } });
    });
  });
});

function readLog(out: string): string {
  return readFileSync(join(out, "logs/launcher.log"), "utf8") + readFileSync(join(out, "logs/engine-0.log"), "utf8");
}
