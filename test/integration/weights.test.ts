/**
 * Weights from DeepSpeed's own partitions to the engine's own slices: every sync is proven by checksums of every
 * tensor, the first one by the engine's own load_weights, each rollout by the logprobs of trainer and engine.
 */
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { processesWith, withFolder } from "./baton.js";
import { type DeepSpeedShape, deepspeedRun } from "./deepspeed.js";
import { ALL } from "./extent.js";

const SHAPES: readonly DeepSpeedShape[] = [
  // Partitions at odd elements; slices of rows, replicated key-value heads, an output embedding of its own.
  { ranks: 3, engines: 1, tensorParallel: 4, zero: 3, dtype: "bfloat16", tied: false, keyValueHeads: 2 },
  // DeepSpeed's default: parameters of under 100,000 elements stay whole on every rank. Rounded on their way.
  {
    ...{ ranks: 2, engines: 2, tensorParallel: 1, zero: 3, dtype: "float32", tied: true, keyValueHeads: 1 },
    ...{ defaultThreshold: true, engineDtype: "bfloat16" },
  },
];
const MORE: readonly DeepSpeedShape[] = [
  { ranks: 2, engines: 1, tensorParallel: 2, zero: 1, dtype: "float32", tied: false, keyValueHeads: 2 },
];

describe("weights reach the engines", { timeout: 300_000 }, () => {
  for (const shape of ALL ? [...SHAPES, ...MORE] : SHAPES) {
    const { ranks, tensorParallel, zero, tied, keyValueHeads, dtype, engineDtype = dtype, defaultThreshold } = shape;
    const heads = `${keyValueHeads} of 4 heads, ${tied ? "tied" : "untied"}`;
    const name = `${ranks} ranks, ZeRO-${zero}${defaultThreshold ? " by default" : ""}, TP=${tensorParallel}`;
    it(`${name}, ${heads}, ${dtype}${engineDtype === dtype ? "" : ` to ${engineDtype}`}`, async () => {
      await withFolder(async (folder) => {
        const baton = deepspeedRun(folder, shape);
        const ended = await baton.ended;
        expect(ended.code, ended.output).toBe(0);
        const { checks, topology, handoffs, weightEpoch, left } = baton.summary();
        expect(topology).toMatchObject({ ranks, tensorParallel, zeroStage: zero });
        expect({ handoffs, weightEpoch, left }).toEqual({
          handoffs: { toGeneration: 3, toTraining: 3 },
          weightEpoch: 2,
          left: { processes: 0, deviceBytes: 0 },
        });
        // A model of two layers: 12 tensors each, embedding, norm, and an output embedding that is not tied.
        const tensors = 2 * 12 + (tied ? 2 : 3);
        expect(checks.weightChecksumsFailed).toBe(0);
        expect(checks.weightChecksumsPassed).toBe(tensors * shape.engines * 3);
        expect(checks.maxLogprobDifference).toBeGreaterThan(0);
        expect(checks.maxLogprobDifference).toBeLessThanOrEqual(engineDtype === "float32" ? 1e-4 : 0.2);
        // By the copy plan, not by the fallback.
        expect(eventsOf(baton.events(), "note").filter(({ code }) => code === "LOAD_WEIGHTS")).toEqual([]);
        expect(processesWith(folder)).toEqual([]);
      });
    });
  }
});
