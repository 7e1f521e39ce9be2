/** What the bench on a GPU makes of many handoffs in a row. */
import { describe, expect, it } from "vitest";
import { rowsOf } from "../../src/bench/gpu/rows.js";
import { GIB, MIB, result, rowOf } from "./bench-gpu.fixture.js";

describe("many handoffs in a row", () => {
  const run = (cycles: number, slower: number, grown: number) => {
    const late = (cycle: number): number => (cycle >= cycles - 20 ? 1 : 0);
    const each = (value: (cycle: number) => number) => Array.from({ length: cycles }, (_, cycle) => value(cycle));
    return result("handoff", "ours", {
      samples: {
        "to first tokens seconds": each((cycle) => 0.5 + slower * late(cycle)),
        "to first forward seconds": each(() => 0.1),
        "step seconds": each((cycle) => (cycle < 10 ? 9 : 0.3)),
        "used while generating bytes": each((cycle) => 60 * GIB + grown * late(cycle)),
        "used while training bytes": each(() => 30 * GIB),
        "resident bytes": each((cycle) => (cycle < 10 ? 0 : GIB)),
        "pool live bytes": each(() => GIB),
      },
    });
  };

  it("are judged by what drifts and what grows, but for the first ones", () => {
    const still = rowsOf([run(70, 0, 0)]).filter(({ metric }) => metric.includes("handoffs:"));
    expect(still).toEqual([]);
    const same = rowsOf([run(130, 0, 0)]).filter(({ metric }) => metric.startsWith("130 handoffs:"));
    expect(same.map(({ met }) => met)).toEqual(Array.from({ length: 7 }, () => true));
    const worse = rowsOf([run(130, 0.05, 17 * MIB)]).filter(({ met, metric }) => metric.includes(":") && met === false);
    // Of the last third only a half is slower, which its median does not show.
    expect(worse.map(({ metric }) => metric)).toEqual(["130 handoffs: GPU memory while generating grows by"]);
    const slow = run(130, 0.05, 0);
    const samples = slow.record?.samples["to first tokens seconds"] as number[];
    samples.fill(0.55, 90);
    expect(rowOf([slow], "130 handoffs: training to first tokens drifts by")).toMatchObject({
      met: false,
      missedBy: "10, not 5",
    });
  });
});
