import { describe, expect, it } from "vitest";
import { nodeFolder, nodePlace, recipeFrom } from "../../../src/recipe/index.js";
import { firstHost } from "../../../src/recipe/nodes.js";

type Environment = Readonly<Record<string, string>>;

function place(environment: Environment, nodes = {}) {
  const recipe = recipeFrom({ engine: { model: "m" }, gpus: { count: 1 }, nodes }, "/");
  return nodePlace(recipe, environment);
}

const TORCHRUN = { PET_NNODES: "4", PET_NODE_RANK: "2", PET_MASTER_ADDR: "job-master-0", PET_MASTER_PORT: "23456" };
const SLURM = {
  ...{ SLURM_STEP_NUM_NODES: "2", SLURM_STEP_NUM_TASKS: "2", SLURM_NODEID: "1" },
  SLURM_STEP_NODELIST: "gpu[07-08]",
};

describe("which of several nodes this is", () => {
  it("is nothing to be said where there is one", () => {
    expect(place({})).toBeNull();
    expect(place({ PET_NNODES: "1", PET_NODE_RANK: "0" })).toBeNull();
    // A batch script without a job step of several nodes.
    expect(place({ SLURM_JOB_NUM_NODES: "2", SLURM_NODEID: "0" })).toBeNull();
    expect(place(TORCHRUN, { count: 1 })).toBeNull();
  });

  it("comes from torchrun's environment", () => {
    expect(place(TORCHRUN)).toEqual({ count: 4, rank: 2, address: "job-master-0", port: 23456 });
    expect(place({ ...TORCHRUN, PET_NNODES: "4:4" })).toMatchObject({ count: 4 });
  });

  it("comes from Slurm's job step", () => {
    expect(place(SLURM)).toEqual({ count: 2, rank: 1, address: "gpu07", port: 29500 });
    expect(place({ ...SLURM, MASTER_PORT: "12345" })).toMatchObject({ port: 12345 });
  });

  it("comes from the recipe, first of all, and key by key", () => {
    expect(place(TORCHRUN, { rank: 0, address: "elsewhere" })).toEqual({
      ...{ count: 4, rank: 0, address: "elsewhere", port: 23456 },
    });
    expect(place({}, { count: 2, rank: 1, address: "a", port: 1000 })).toEqual({
      ...{ count: 2, rank: 1, address: "a", port: 1000 },
    });
  });

  it.each([
    ["PET_NNODES asks", "PET_NNODES=2:4", { ...TORCHRUN, PET_NNODES: "2:4" }, {}],
    ["PET_NNODES is no number of nodes", "PET_NNODES=0", { ...TORCHRUN, PET_NNODES: "0" }, {}],
    ["PET_NODE_RANK of the environment is not", "PET_NODE_RANK=first", { ...TORCHRUN, PET_NODE_RANK: "first" }, {}],
    ["PET_NODE_RANK is the number of no node", "PET_NODE_RANK=4", { ...TORCHRUN, PET_NODE_RANK: "4" }, {}],
    ["nodes.rank is the number of no node", "nodes.rank=5", TORCHRUN, { rank: 5 }],
    ["more than one task", "SLURM_STEP_NUM_TASKS=16 on 2 nodes", { ...SLURM, SLURM_STEP_NUM_TASKS: "16" }, {}],
    ["PET_MASTER_PORT is no port", "PET_MASTER_PORT=65535", { ...TORCHRUN, PET_MASTER_PORT: "65535" }, {}],
    ["nodes.count=2: there are several nodes, but nothing", "none of them", {}, { count: 2, address: "a" }],
    ["where node 0 is", "none of them", {}, { count: 2, rank: 0 }],
  ] as [string, string, Environment, object][])("is refused by name: %s", (message, found, environment, nodes) => {
    const refusal = { code: "NODES_INVALID", message: expect.stringContaining(message), found };
    expect(() => place(environment, nodes)).toThrowError(expect.objectContaining(refusal));
  });

  it.each([
    ["gpu1", "gpu1"],
    ["gpu[03-07,12],login1", "gpu03"],
    ["a1,b[1-2]", "a1"],
    ["rack[2-3]node[08,11]", "rack2node08"],
    ["dgx-a[01-02].cluster.local", "dgx-a01.cluster.local"],
  ])("finds the first host of %s", (list, host) => {
    expect(firstHost(list)).toBe(host);
  });

  it("says where it writes", () => {
    const other = { count: 2, rank: 1, address: "a", port: 1 };
    expect([nodeFolder("/o", null), nodeFolder("/o", { ...other, rank: 0 }), nodeFolder("/o", other)]).toEqual([
      ...["/o", "/o", "/o/node-1"],
    ]);
  });
});
