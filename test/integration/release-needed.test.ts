/** `release: needed`: training gives back what the engine lacks, and keeps the rest on the GPU. */
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { processesWith, withFolder } from "./baton.js";
import { deepspeedRun } from "./deepspeed.js";

const MIB = 2 ** 20;
const GPU_MIB = 44;

const RECIPE = ["release=needed", "engine.maxSequences=512", `gpus.simulated.memoryBytes=${GPU_MIB}MiB`].flatMap(
  (set) => ["--set", set],
);

describe("release: needed", { timeout: 240_000 }, () => {
  it("keeps on the GPU what fits beside the engine, and hands over as well", async () => {
    await withFolder(async (folder) => {
      const baton = deepspeedRun(folder, {
        ...{ ranks: 2, engines: 1, tensorParallel: 2, zero: 2, dtype: "float32", tied: true, keyValueHeads: 2 },
        ...{
          hidden: 320,
          steps: 3,
          words: RECIPE,
        },
      });
      const ended = await baton.ended;
      expect(ended.code, ended.output).toBe(0);
      const { checks, handoffs, left, gpus } = baton.summary();
      expect(handoffs).toEqual({ toGeneration: 4, toTraining: 4 });
      expect(left).toEqual({ processes: 0, deviceBytes: 0 });
      expect(checks.weightChecksumsFailed).toBe(0);
      expect(checks.maxLogprobDifference).toBeLessThanOrEqual(1e-4);
      // Some of it each time, and never all.
      const released = eventsOf(baton.events(), "released");
      expect(released).toHaveLength(2 * 4);
      for (const { releasedBytes, keptBytes } of released) {
        expect(releasedBytes).toBeGreaterThan(0);
        expect(keptBytes).toBeGreaterThan(0);
      }
      for (const { peakBytes } of gpus) expect(peakBytes).toBeLessThanOrEqual(GPU_MIB * MIB);
      expect(processesWith(folder)).toEqual([]);
    });
  });
});
