import { describe, expect, it } from "vitest";
import { type EventBody, eventsOf, type RunEvent } from "../../src/report/events.js";
import { ledgerFigures } from "../../src/report/ledger.js";
import { quantile, type Summary, summary } from "../../src/report/summary.js";
import { smallRun } from "./report-events.fixture.js";

const MiB = 2 ** 20;
const of = (events: readonly RunEvent[]): Summary => summary(events, ledgerFigures(events));

/** The run with every event of one kind changed. */
function broken<T extends EventBody["type"]>(
  type: T,
  change: (event: Extract<EventBody, { type: T }>) => Partial<Extract<EventBody, { type: T }>> | null,
): Summary {
  return of(
    smallRun().flatMap((event) => {
      if (event.type !== type) return [event];
      const changed = change(event as Extract<RunEvent, { type: T }>);
      return changed === null ? [] : [{ ...event, ...changed } as RunEvent];
    }),
  );
}

describe("summary of a run", () => {
  it("has the figures of its events", () => {
    expect(of(smallRun())).toEqual({
      simulated: true,
      topology: { gpus: 2, ranks: 2, engines: 1, tensorParallel: 2, zeroStage: 3 },
      batches: 2,
      handoffs: { toGeneration: 2, toTraining: 2 },
      weightEpoch: 2,
      checks: { weightChecksumsPassed: 52, weightChecksumsFailed: 0, maxLogprobDifference: 2e-6 },
      phases: [
        { name: "start", count: 1, p50Ms: 500, p95Ms: 500, maxMs: 500 },
        { name: "train", count: 3, p50Ms: 100, p95Ms: 190, maxMs: 200 },
        { name: "arrive", count: 2, p50Ms: 5, p95Ms: 5, maxMs: 5 },
        { name: "release", count: 2, p50Ms: 6, p95Ms: 6, maxMs: 6 },
        { name: "sync", count: 2, p50Ms: 3, p95Ms: 3, maxMs: 3 },
        { name: "generate", count: 2, p50Ms: 40, p95Ms: 40, maxMs: 40 },
        { name: "sleep", count: 2, p50Ms: 5, p95Ms: 5, maxMs: 5 },
        { name: "resume", count: 2, p50Ms: 6, p95Ms: 6, maxMs: 6 },
        { name: "end", count: 1, p50Ms: 10, p95Ms: 10, maxMs: 10 },
      ],
      reward: { first: 0.25, last: 0.5, heldOutBefore: 0.3, heldOutAfter: 0.6 },
      gpus: [
        {
          index: 0,
          peakBytes: 120 * MiB,
          trainingReleasedBytes: 16 * MiB,
          leftByTrainingBytes: 3 * MiB,
          leftByEngineBytes: 3 * MiB,
        },
        {
          index: 1,
          peakBytes: 90 * MiB,
          trainingReleasedBytes: 16 * MiB,
          leftByTrainingBytes: 3 * MiB,
          leftByEngineBytes: null,
        },
      ],
      simulatedCopySeconds: 0.5,
      left: { processes: 0, deviceBytes: 0 },
      seconds: 0.959,
      exit: { reason: "finished", code: 0, failure: null },
    });
  });

  it("changes with each event that is broken", () => {
    expect(broken("started", () => ({ simulated: false })).simulated).toBe(false);
    expect(broken("started", () => ({ simulated: false })).simulatedCopySeconds).toBeNull();
    expect(broken("model", () => ({ zeroStage: 2 })).topology.zeroStage).toBe(2);
    expect(broken("model", () => null).topology.zeroStage).toBeNull();
    expect(broken("model", () => ({ stateBytes: [1] })).topology.ranks).toBe(1);
    expect(broken("metrics", ({ step }) => (step === 1 ? null : {})).batches).toBe(1);
    expect(broken("metrics", () => ({ values: { reward: null } })).reward.first).toBeNull();
    expect(broken("metrics", ({ step }) => ({ values: { reward: step } })).reward).toEqual({
      first: 0,
      last: 1,
      heldOutBefore: null,
      heldOutAfter: null,
    });
    // What a rank says again of a step, as after an evaluation of it, is what it means.
    const again = smallRun().flatMap((event): RunEvent[] =>
      event.type === "metrics" ? [{ ...event, values: { reward: 9 } }, event] : [event],
    );
    expect(of(again).reward).toMatchObject({ first: 0.25, last: 0.5 });
    expect(broken("phase", ({ to }) => (to === "generate" ? null : {})).handoffs).toEqual({
      toGeneration: 0,
      toTraining: 2,
    });
    expect(broken("phase", ({ from, handoff }) => (from === "resume" && handoff === 2 ? null : {})).handoffs).toEqual({
      toGeneration: 2,
      toTraining: 1,
    });
    expect(broken("checked", ({ epoch }) => (epoch === 2 ? { passed: 25, failed: 1 } : {}))).toMatchObject({
      weightEpoch: 1,
      checks: { weightChecksumsPassed: 51, weightChecksumsFailed: 1 },
    });
    expect(broken("logprob", () => ({ maxDifference: 0.5 })).checks.maxLogprobDifference).toBe(0.5);
    expect(broken("logprob", () => ({ maxDifference: null })).checks.maxLogprobDifference).toBeNull();
    expect(broken("memory", () => ({ usedBytes: [0, 0], peakBytes: [1, 2] })).gpus.map((gpu) => gpu.peakBytes)).toEqual(
      [1, 2],
    );
    expect(broken("memory", () => null).gpus.map((gpu) => gpu.peakBytes)).toEqual([null, null]);
    expect(broken("released", ({ gpu }) => (gpu === 1 ? null : {})).gpus[1]).toMatchObject({
      trainingReleasedBytes: null,
      leftByTrainingBytes: null,
    });
    expect(broken("released", () => ({ releasedBytes: 5 })).gpus[0]?.trainingReleasedBytes).toBe(10);
    expect(broken("asleep", () => ({ leftBytes: [7, 8] })).gpus.map((gpu) => gpu.leftByEngineBytes)).toEqual([7, 8]);
    expect(broken("work", () => ({ figures: { simulatedSeconds: 2 } })).simulatedCopySeconds).toBe(8);
    expect(broken("left", () => ({ processes: 3, deviceBytes: [5, 6] })).left).toEqual({
      processes: 3,
      deviceBytes: 11,
    });
    expect(broken("left", () => ({ deviceBytes: [5, null] })).left?.deviceBytes).toBeNull();
    expect(broken("exit", () => ({ reason: "interrupted", code: 130 })).exit).toEqual({
      reason: "interrupted",
      code: 130,
      failure: null,
    });
  });

  it("does not count a release that never came to its end", () => {
    const events = smallRun();
    const unfinished = events.filter(
      (event) => !(event.type === "released" && event.handoff === 2 && event.stage === "all"),
    );
    expect(of(unfinished).gpus[0]?.trainingReleasedBytes).toBe(8 * MiB);
  });

  it("needs a beginning and an end", () => {
    expect(() => of(smallRun().slice(1))).toThrow("started");
    expect(() => of(smallRun().slice(0, -1))).toThrow("exit");
  });

  it("is there for a run that failed before anything happened", () => {
    const [first] = smallRun() as [RunEvent];
    const failed: RunEvent = {
      monotonicMs: 1_000_500,
      wall: "",
      type: "exit",
      reason: "failed",
      code: 1,
      failure: { code: "NODE_LOST", message: "m", expected: "e", found: "f", action: "a" },
    };
    expect(of([first, failed])).toMatchObject({
      batches: 0,
      weightEpoch: null,
      phases: [],
      exit: { code: 1, failure: { code: "NODE_LOST" } },
    });
  });
});

describe("quantile", () => {
  it("lies between the nearest values", () => {
    expect(quantile([5], 0.95)).toBe(5);
    expect(quantile([0, 10], 0.5)).toBe(5);
    expect(quantile([0, 1, 2, 3, 4], 0.95)).toBeCloseTo(3.8);
  });
});

describe("eventsOf", () => {
  it("keeps the order", () => {
    expect(eventsOf(smallRun(), "checked").map(({ epoch }) => epoch)).toEqual([1, 2]);
  });
});
