/** Two nodes in one run. */
import { describe, expect, it } from "vitest";
import { processesWith, withFolder } from "./baton.js";
import { freePorts, lightNode } from "./two-nodes.js";

describe("two nodes", () => {
  it("train together, and node 0 reports for both", async () => {
    await withFolder(async (folder) => {
      const port = await freePorts();
      const nodes = [0, 1].map((node) => lightNode(folder, node, port));
      const ended = await Promise.all(nodes.map((node) => node.ended));
      for (const [node, one] of ended.entries()) expect(one, `node ${node}: ${one.output}`).toMatchObject({ code: 0 });
      expect(processesWith(folder)).toEqual([]);
      const summary = nodes[0]?.summary();
      expect(summary?.nodes).toMatchObject({ count: 2, totals: { reported: 2, ranks: 4, gpus: 4 } });
    });
  });
});
