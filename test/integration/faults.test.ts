/** Weights that are not what they should be end the run: nothing is generated with them in silence. */
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { processesWith, withFolder } from "./baton.js";
import { type LightOptions, lightRun } from "./light.js";

/** The failure of a light run with these faults, and how many handoffs it lived through. */
async function failed(faults: string, options: LightOptions = {}) {
  return withFolder(async (folder) => {
    const baton = lightRun(folder, { ...options, environment: { ...options.environment, BATON_FAULTS: faults } });
    const ended = await baton.ended;
    expect(ended.code, ended.output).toBe(1);
    expect(processesWith(folder)).toEqual([]);
    const summary = baton.summary();
    expect(summary.left).toEqual({ processes: 0, deviceBytes: 0 });
    const failure = eventsOf(baton.events(), "exit")[0]?.failure;
    return { code: failure?.code, message: failure?.message, generations: summary.handoffs.toGeneration };
  });
}

describe("a sync that goes wrong", () => {
  it("by one bit is found by its checksum, before anything is generated", async () => {
    expect(await failed("worker.sync.flip-bit@2")).toMatchObject({ code: "WEIGHT_CHECKSUM_MISMATCH", generations: 1 });
  });

  it("is found before anything is generated also when its sums come after the cache", async () => {
    // The sums of the first sync are not made beside anything: they are wanted for its comparison.
    const faults = "worker.sync.flip-bit@2,worker.sums.late@1:0.8";
    expect(await failed(faults)).toMatchObject({ code: "WEIGHT_CHECKSUM_MISMATCH", generations: 1 });
  });

  it("has a deadline for the sums, too, which names the worker that is late", async () => {
    const set = ["deadlines.syncMs=3000"];
    expect(await failed("worker.sums.late@1:1/600", { set, tensorParallel: 2 })).toMatchObject({
      ...{ code: "DEADLINE", generations: 1 },
      message: expect.stringMatching(/^worker 1 of engine 0 did not sum its weights up within 3000 ms/),
    });
  });

  it("by copies that were left out is found by its checksum", async () => {
    expect(await failed("worker.sync.skip-copies@2")).toMatchObject({
      code: "WEIGHT_CHECKSUM_MISMATCH",
      generations: 1,
    });
  });

  it("by weights of an older step is found by their epoch", async () => {
    expect(await failed("worker.sync.stale-epoch@2")).toMatchObject({ code: "STALE_EPOCH", generations: 1 });
  });

  it("is not found when nobody looks: the checks above are what finds it", async () => {
    await withFolder(async (folder) => {
      const baton = lightRun(folder, {
        set: ["checks.weights=off", "checks.compareFirst=false"],
        environment: { BATON_FAULTS: "worker.sync.flip-bit@2" },
      });
      expect(await baton.ended).toMatchObject({ code: 0 });
    });
  });
});

describe("a driver that fails", () => {
  it("on the engine's side ends the run with what it said", async () => {
    const environment = { BATON_STANDIN_FAULTS: "cuMemMap:after=30:result=999:role=engine" };
    const { code } = await failed("", { steps: 20, environment });
    expect(code).toMatch(/^(CUDA|DRIVER)_/);
  });

  it("by dying inside of a rank is a death like any other", async () => {
    const environment = { BATON_STANDIN_FAULTS: "cuMemUnmap:after=4:signal=9:role=rank" };
    expect((await failed("", { steps: 20, environment })).code).toMatch(/^(RANK_DIED|LAUNCHER_FAILED)$/);
  });
});
