/** Real DeepSpeed ranks on two nodes: what they train, and what their engines hold. */
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import type { Baton } from "./baton.js";
import { withFolder } from "./baton.js";
import { type DeepSpeedShape, deepspeedRun } from "./deepspeed.js";
import { folderOf, freePorts } from "./two-nodes.js";

const SHAPE = {
  tensorParallel: 2,
  dtype: "bfloat16",
  tied: true,
  keyValueHeads: 2,
  steps: 3,
  sharedMemory: false,
} as const;

/** Losses by step: the mean over all ranks, as each rank of the node said it. */
function losses(baton: Baton): number[] {
  return eventsOf(baton.events(), "metrics")
    .filter(({ rank }) => rank === 0)
    .map(({ values }) => values.loss ?? Number.NaN);
}

async function finished(baton: Baton): Promise<void> {
  const ended = await baton.ended;
  expect(ended, ended.output).toMatchObject({ code: 0 });
}

async function onOneNode(shape: DeepSpeedShape): Promise<number[]> {
  return withFolder(async (folder) => {
    const baton = deepspeedRun(folder, shape);
    await finished(baton);
    return losses(baton);
  });
}

async function onTwoNodes(shape: DeepSpeedShape): Promise<number[][]> {
  return withFolder(async (folder) => {
    const port = await freePorts();
    const nodes = [0, 1].map((node) => deepspeedRun(folderOf(folder, node), { ...shape, place: { node, port } }));
    await Promise.all(nodes.map(finished));
    const summary = nodes[0]?.summary();
    expect(summary?.nodes?.totals).toMatchObject({ reported: 2, ranks: 4, weightChecksumsFailed: 0 });
    for (const { summary: each } of summary?.nodes?.each ?? []) {
      expect(each?.checks.weightChecksumsPassed).toBeGreaterThan(0);
      expect(each?.left).toEqual({ processes: 0, deviceBytes: 0 });
    }
    return nodes.map(losses);
  });
}

describe("two nodes train as one with as many ranks does", { timeout: 600_000 }, () => {
  it("under ZeRO-3, where weights cross the network", async () => {
    const one = await onOneNode({ ...SHAPE, ranks: 4, engines: 2, zero: 3 });
    const two = await onTwoNodes({ ...SHAPE, ranks: 2, engines: 1, zero: 3 });
    expect(one).toHaveLength(3);
    expect(two).toEqual([one, one]);
  });
});
