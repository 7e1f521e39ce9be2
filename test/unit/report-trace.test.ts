import { describe, expect, it } from "vitest";
import { trace } from "../../src/report/trace.js";
import { smallRun } from "./report-events.fixture.js";

describe("trace of a run", () => {
  const { traceEvents, otherData } = trace(smallRun());

  it("has one named track for each process", () => {
    const names = traceEvents.filter(({ name }) => name === "process_name").map(({ args }) => args?.name);
    expect(names).toEqual([
      "controller",
      "launcher",
      "rank 0",
      "rank 1",
      "engine 0",
      "worker 0 of engine 0",
      "worker 1 of engine 0",
    ]);
    const order = traceEvents.filter(({ name }) => name === "process_sort_index").map(({ args }) => args?.sort_index);
    expect([...order].sort((a, b) => Number(a) - Number(b))).toEqual(order);
    expect(new Set(order).size).toBe(order.length);
  });

  it("has one slice for each phase of the node, without gaps", () => {
    const slices = traceEvents.filter(({ cat, ph }) => ph === "X" && cat === "phase");
    expect(slices.map(({ name }) => name).slice(0, 5)).toEqual(["start", "train", "arrive", "release", "sync"]);
    expect(slices).toHaveLength(17);
    slices.slice(1).forEach((slice, position) => {
      const before = slices[position];
      expect((before?.ts ?? 0) + (before?.dur ?? 0)).toBe(slice.ts);
    });
  });

  it("puts the work of a process on its track, with its figures", () => {
    const work = traceEvents.filter(({ name, pid }) => name === "releasing" && pid === 21);
    expect(work).toHaveLength(2);
    expect(work[0]).toMatchObject({ ph: "X", dur: 2000, args: { phase: "release", simulatedSeconds: 0.125 } });
  });

  it("counts memory by GPU and says that it is simulated", () => {
    const counters = traceEvents.filter(({ ph, name }) => ph === "C" && name === "GPU 1 memory");
    expect(counters.map(({ args }) => args?.MiB)).toEqual([80, 70, 80, 70]);
    expect(otherData.simulated).toBe(true);
  });

  it("is what Perfetto reads: times in whole microseconds, none negative", () => {
    for (const { ts, dur, ph } of traceEvents) {
      if (ph === "M") continue;
      expect(Number.isInteger(ts)).toBe(true);
      expect(ts).toBeGreaterThanOrEqual(0);
      if (ph === "X") expect(dur).toBeGreaterThanOrEqual(0);
    }
    expect(() => JSON.parse(JSON.stringify({ traceEvents }))).not.toThrow();
  });
});
