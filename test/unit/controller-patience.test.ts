/** How long a stopped process is borne. */
import { expect, it } from "vitest";
import { phaseDeadlineMs, StopWatch, stopDeadlineMs } from "../../src/controller/patience.js";
import { phaseConfig, recipeFrom } from "../../src/recipe/index.js";

const stopped = { name: "rank 1", pid: 7, state: "T" };
const running = { name: "rank 0", pid: 6, state: "S" };

it("one deadline, that of the phase in which it was stopped, whatever phases follow", () => {
  const watch = new StopWatch();
  expect(watch.look([running, stopped], 0, 1_000)).toBeNull();
  // The next phases have longer deadlines of their own.
  expect(watch.look([running, stopped], 1_000, 60_000)).toBeNull();
  expect(watch.look([running, stopped], 1_001, 60_000)).toMatchObject({ who: { pid: 7 }, deadlineMs: 1_000 });
});

it("none for a process that goes on, and a new one for its next stop", () => {
  const watch = new StopWatch();
  watch.look([stopped], 0, 1_000);
  expect(watch.look([{ ...stopped, state: "S" }], 900, 1_000)).toBeNull();
  expect(watch.look([stopped], 1_500, 1_000)).toBeNull();
  expect(watch.look([stopped], 2_501, 1_000)).not.toBeNull();
});

it("a phase of several waits is as patient as the longest of them", () => {
  const { deadlines } = phaseConfig(recipeFrom({ engine: { model: "m" }, gpus: { count: 1 } }, "/"));
  const changed = { ...deadlines, releaseMs: 5, roomMs: 7, wakeMs: 11, resumeMs: 13, syncMs: 17 };
  const phases = ["release", "wake", "cache", "resume", "sync"] as const;
  expect(phases.map((phase) => stopDeadlineMs(changed, phase))).toEqual([5, 11, 17, 13, 17]);
  // What is done one after the other in it.
  expect(phaseDeadlineMs(changed, "cache")).toBe(5 + 7 + 11 + 17);
});
