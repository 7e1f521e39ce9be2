import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { judge } from "./judge.js";
import { type Scenario, scenario } from "./scenario.js";
import { type Machine, World } from "./world.js";

/** Each run is one order of events out of a scenario; the number of runs is what the property promises. */
const RUNS = 100_000;

function runScenario(one: Scenario, machine?: Machine): World {
  const world = new World(one, machine);
  judge(world, world.run());
  return world;
}

describe("phases, in generated orders of events", () => {
  it("keeps every promise", { timeout: 900_000 }, () => {
    const ends = new Map<string, number>();
    fc.assert(
      fc.property(scenario, (one) => {
        const { end } = runScenario(one);
        const code = end?.failure?.code ?? "finished";
        ends.set(code, (ends.get(code) ?? 0) + 1);
      }),
      { numRuns: RUNS },
    );
    expect(ends.size).toBeGreaterThan(20);
  });
});
