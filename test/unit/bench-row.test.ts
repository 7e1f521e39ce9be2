import { describe, expect, it } from "vitest";
import { benchRow, formatRows } from "../../src/bench/row.js";

const row = (ours: number, why?: string) =>
  benchRow({
    ...{ subject: "barrier", metric: "p50", unit: "us", ours, peer: 300, limit: 20, better: "lower", goal: 1 },
    ...{ simulated: false, note: "of clients" },
    ...(why === undefined ? {} : { why }),
  });

describe("a goal", () => {
  it("that is missed is told with by how much, and why where that is known", () => {
    expect(formatRows([row(50, "cores")])).toContain("Missed: barrier, p50: 0.4 of the limit, not 1. Why: cores.");
    expect(formatRows([row(50)])).toContain("Missed: barrier, p50: 0.4 of the limit, not 1.\n");
  });

  it("that is met needs no reason", () => {
    expect(row(10, "cores").why).toBeNull();
    expect(formatRows([row(10, "cores")])).not.toContain("Missed");
  });
});
