import { describe, expect, it } from "vitest";
import { RankNumbers } from "../../src/controller/nodes.js";
import type { Hello } from "../../src/controller/server.js";
import type { NodeRanks } from "../../src/nodes/index.js";

const hello = (index: number, localRank: number, worldSize: number, localWorldSize = 2): Hello => ({
  ...{ type: "hello", protocol: 1, token: "", role: "rank", pid: 1, engine: null, gpu: localRank, version: "" },
  ...{ index, localRank, worldSize, localWorldSize },
});

describe("the ranks of a node", () => {
  it("say once which they are among all", () => {
    const told: NodeRanks[] = [];
    const numbers = new RankNumbers((ranks) => told.push(ranks));
    expect([numbers.see(hello(5, 1, 8)), numbers.see(hello(4, 0, 8))]).toEqual([null, null]);
    expect(told).toEqual([{ first: 4, local: 2, world: 8 }]);
  });

  it("are numbered in one piece", () => {
    const numbers = new RankNumbers(() => {});
    expect(numbers.see(hello(0, 0, 4))).toBeNull();
    expect(numbers.see(hello(2, 1, 4))).toMatchObject({ code: "TOPOLOGY_MISMATCH", found: "rank 2" });
  });

  it("are all that there are, where no other node is known", () => {
    expect(new RankNumbers(null).see(hello(0, 0, 2))).toBeNull();
    expect(new RankNumbers(null).see(hello(0, 0, 4))).toMatchObject({
      code: "RANKS_ELSEWHERE",
      found: "a job of 4 ranks, 2 of them here",
    });
  });

  it("are nothing that an engine speaks of", () => {
    const engine: Hello = { ...hello(0, 0, 1), role: "engine", localRank: null, worldSize: null, localWorldSize: null };
    expect(new RankNumbers(null).see(engine)).toBeNull();
  });
});
