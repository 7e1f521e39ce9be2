import { describe, expect, it } from "vitest";
import { eventsOf, type RunEvent } from "../../src/report/events.js";
import type { Summary } from "../../src/report/summary.js";
import { Baton, processesWith, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { python } from "./light.js";

/** Problems that were never trained on, as grpo.py's --held-out has it. */
const HELD_OUT = 512;
const LEAST_RISE = 0.1;
const DEFAULT_STEPS = 12;

/** Segments so small that what is released can be compared with what training state there is. */
const GRANULARITY_BYTES = 64 * 2 ** 10;

interface Shape {
  readonly ranks: number;
  readonly engines: number;
  readonly tensorParallel: number;
  readonly zero: 1 | 2 | 3;
  readonly seed: number;
  readonly dtype: "float32" | "bfloat16";
  /** undefined: the demo's own. */
  readonly steps?: number;
  /** Not a word of the shape: it is that of `npm run demo`. */
  readonly byDefault?: boolean;
  readonly long?: boolean;
}

async function demo(
  { ranks, engines, tensorParallel, zero, seed, dtype, byDefault }: Shape,
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Summary> {
  return withFolder(async (folder) => {
    const baton = new Baton(
      folder,
      [
        ...["demo", "--out", `${folder}/out`],
        ...(byDefault ? [] : ["--ranks", String(ranks), "--engines", String(engines), "--tp", String(tensorParallel)]),
        ...(byDefault ? [] : ["--zero", String(zero), "--seed", String(seed), "--dtype", dtype]),
        ...["--set", `gpus.simulated.granularityBytes=${GRANULARITY_BYTES}`],
        ...words,
      ],
      { BATON_PYTHON: python, ...environment },
    );
    const ended = await baton.ended;
    expect(ended.code, ended.output).toBe(0);
    expect(processesWith(folder)).toEqual([]);
    const summary = baton.summary();
    expectStateReleased(summary, baton.events());
    expect(summary).toMatchObject({
      simulated: true,
      topology: { gpus: Math.max(ranks, engines * tensorParallel), ranks, engines, tensorParallel, zeroStage: zero },
      left: { processes: 0, deviceBytes: 0 },
      exit: { reason: "finished", code: 0 },
    });
    return summary;
  });
}

/** That every rank gave its whole training state back: parameters, fp32 masters and Adam's two moments. */
function expectStateReleased({ topology, gpus }: Summary, events: readonly RunEvent[]): void {
  const [model] = eventsOf(events, "model");
  const elements = model?.elements ?? 0;
  const ranks = topology.ranks;
  const parameters = elements * (model?.dtype === "float32" ? 4 : 2);
  const share = (bytes: number, partitionedFrom: number): number =>
    (topology.zeroStage ?? 0) >= partitionedFrom ? bytes / ranks : bytes;
  const state = share(parameters, 3) + share(4 * elements, 1) + share(8 * elements, 1);
  expect(elements).toBeGreaterThan(100_000);
  for (const gpu of gpus.slice(0, ranks)) {
    expect(gpu.trainingReleasedBytes, `GPU ${gpu.index}`).toBeGreaterThanOrEqual(0.95 * state);
    expect(gpu.leftByTrainingBytes, `GPU ${gpu.index}`).toBeLessThanOrEqual(0.05 * state);
  }
}

/** Two standard errors of the difference of two shares of `HELD_OUT` problems. */
function twoErrors(before: number, after: number): number {
  return 2 * Math.sqrt((before * (1 - before) + after * (1 - after)) / HELD_OUT);
}

describe("the demo", { timeout: 900_000 }, () => {
  // After so many batches held-out reward has risen by several standard errors.
  const few = ALL ? {} : { steps: 4 };
  const shapes: readonly Shape[] = [
    { ranks: 8, engines: 2, tensorParallel: 4, zero: 3, seed: 0, dtype: "bfloat16", byDefault: true, ...few },
    { ranks: 4, engines: 2, tensorParallel: 2, zero: 2, seed: 0, dtype: "bfloat16", steps: 8, long: true },
    { ranks: 2, engines: 1, tensorParallel: 2, zero: 1, seed: 1, dtype: "float32", steps: 8, ...few },
    { ranks: 3, engines: 3, tensorParallel: 1, zero: 3, seed: 2, dtype: "bfloat16", steps: 8, long: true },
  ];
  for (const shape of shapes) {
    const { ranks, engines, tensorParallel, zero, seed } = shape;
    it.skipIf(shape.long === true && !ALL)(
      `learns: ${ranks} ranks, ${engines} engines, TP=${tensorParallel}, ZeRO-${zero}, seed ${seed}`,
      async () => {
        const steps = shape.steps ?? DEFAULT_STEPS;
        const summary = await demo(shape, shape.steps === undefined ? [] : ["--steps", String(steps)]);
        const { heldOutBefore, heldOutAfter } = summary.reward;
        expect(summary.batches).toBe(steps);
        expect(summary.handoffs).toEqual({ toGeneration: steps + 1, toTraining: steps + 1 });
        expect(summary.checks.weightChecksumsFailed).toBe(0);
        expect(summary.checks.weightChecksumsPassed).toBeGreaterThan(20 * engines * (steps + 1));
        expect(summary.checks.maxLogprobDifference).toBeLessThanOrEqual(shape.dtype === "float32" ? 1e-4 : 0.2);
        expect(heldOutBefore).toBeGreaterThan(0.2);
        expect(heldOutBefore).toBeLessThan(0.5);
        const rise = (heldOutAfter ?? 0) - (heldOutBefore ?? 0);
        expect(rise).toBeGreaterThan(Math.max(LEAST_RISE, twoErrors(heldOutBefore ?? 0, heldOutAfter ?? 0)));
        for (const gpu of summary.gpus) {
          expect(gpu.peakBytes).toBeLessThanOrEqual(24 * 2 ** 20);
        }
      },
    );
  }

  const small: Shape = { ranks: 2, engines: 1, tensorParallel: 1, zero: 2, seed: 0, dtype: "float32" };

  it.runIf(ALL)("learns nothing at a learning rate of 0", async () => {
    const { heldOutBefore, heldOutAfter } = (await demo(small, ["--steps", "2", "--learning-rate", "0"])).reward;
    expect(heldOutAfter).toBe(heldOutBefore);
  });

  it("ends when trainer and engine disagree about the same tokens", async () => {
    await withFolder(async (folder) => {
      const words = ["demo", "--out", `${folder}/out`, "--ranks", "1", "--engines", "1", "--tp", "1", "--zero", "2"];
      const baton = new Baton(folder, [...words, "--steps", "2", "--dtype", "float32"], {
        BATON_PYTHON: python,
        BATON_FAULTS: "rank.prompts.swap",
      });
      const ended = await baton.ended;
      expect(ended.code).toBe(1);
      expect(ended.output).toContain("LOGPROB_MISMATCH: ");
      expect(baton.summary()).toMatchObject({
        left: { processes: 0, deviceBytes: 0 },
        exit: { reason: "failed", code: 1 },
      });
      expect(baton.summary().checks.maxLogprobDifference).toBeGreaterThan(1e-4);
    });
  });

  it("says aloud when an engine loads the weights itself instead of by the copy plan", async () => {
    await withFolder(async (folder) => {
      const words = ["demo", "--out", `${folder}/out`, "--ranks", "1", "--engines", "1", "--tp", "1", "--zero", "2"];
      const loading = ["--steps", "1", "--set", "engine.sync=load_weights"];
      const baton = new Baton(folder, [...words, ...loading], { BATON_PYTHON: python });
      const ended = await baton.ended;
      expect(ended.code, ended.output).toBe(0);
      expect(ended.output).toContain("the engine's own load_weights: engine.sync asks for it");
      expect(baton.events().some((event) => event.type === "note" && event.code === "LOAD_WEIGHTS")).toBe(true);
    });
  });

  it("refuses engines in float32 for a policy in bfloat16 when the ranks say what they train", async () => {
    await withFolder(async (folder) => {
      const words = ["demo", "--out", `${folder}/out`, "--ranks", "1", "--engines", "1", "--tp", "1", "--zero", "2"];
      const mixed = ["--steps", "1", "--dtype", "bfloat16", "--set", "engine.dtype=float32"];
      const strict = ["--set", "checks.logprobMaxBound=null", "--set", "checks.logprobMeanBound=null"];
      const ended = await new Baton(folder, [...words, ...mixed, ...strict], { BATON_PYTHON: python }).ended;
      expect(ended.code, ended.output).toBe(1);
      expect(ended.output).toContain("DTYPE_MISMATCH: ");
    });
  });

  it("learns nothing when the weights do not reach the engines", async () => {
    const blind = ["checks.weights=off", "checks.compareFirst=false", "checks.logprobSequences=0"];
    const { reward } = await demo(small, ["--steps", "2", ...blind.flatMap((key) => ["--set", key])], {
      BATON_FAULTS: "worker.sync.first-weights",
    });
    // The trainer learns, and the engines answer the same problems with the same weights and seed as at the start.
    expect(reward.heldOutBefore).toBeGreaterThan(0.2);
    expect(reward.heldOutAfter).toBe(reward.heldOutBefore);
  });
});
