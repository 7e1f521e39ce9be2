/** Real DeepSpeed ranks on two nodes: what they train, what their engines hold, and how they die. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { NodePhase } from "../../src/phases/commands.js";
import { eventsOf } from "../../src/report/events.js";
import { Baton, root, withFolder } from "./baton.js";
import { type DeepSpeedShape, deepspeedRun } from "./deepspeed.js";
import { ALL } from "./extent.js";
import { recordComparison } from "./figures.js";
import { partOf, python } from "./light.js";
import { endTogether, finished, folderOf, freePorts, type Victim } from "./two-nodes.js";

const SHAPE = { dtype: "bfloat16", tied: true, keyValueHeads: 2, steps: 3, sharedMemory: false } as const;
/** Ranks that die with a node's are ended by their launcher first, which looks every 100 ms. */
const GONE_MS = 4_000;

async function onTwoNodes<T>(
  shape: DeepSpeedShape,
  use: (nodes: readonly [Baton, Baton], folder: string) => Promise<T>,
): Promise<T> {
  return withFolder(async (folder) => {
    const port = await freePorts();
    const node = (number: number): Baton =>
      deepspeedRun(folderOf(folder, number), { ...shape, place: { node: number, port } });
    const nodes = [node(0), node(1)] as const;
    try {
      return await use(nodes, folder);
    } finally {
      await Promise.all(nodes.map((one) => one.dispose()));
    }
  });
}

/** Mean over all ranks, by step, as the first rank of the node has it. */
function losses(baton: Baton): number[] {
  return eventsOf(baton.events(), "metrics")
    .filter(({ rank }) => rank === 0)
    .map(({ values }) => values.loss ?? Number.NaN);
}

const lossLog = (all: readonly number[]) => all.map((loss) => ({ loss }));

/** `shape` is that of one node of two. */
async function trainsAsOne(shape: DeepSpeedShape): Promise<void> {
  const { ranks, engines } = shape;
  const one = await withFolder(async (folder) => {
    const baton = deepspeedRun(folder, { ...shape, ranks: ranks * 2, engines: engines * 2 });
    await finished(baton);
    return losses(baton);
  });
  expect(one).toHaveLength(3);
  expect(new Set(one).size).toBe(3);
  await onTwoNodes(shape, async (nodes) => {
    await Promise.all(nodes.map(finished));
    const both = nodes.map(losses);
    for (const each of both) recordComparison(lossLog(one), lossLog(each));
    expect(both).toEqual([one, one]);
    expectProven(nodes[0], ranks * 2);
  });
}

/** That both nodes have reported, and that their engines had the trainer's weights. */
function expectProven(first: Baton, ranks: number): void {
  const { nodes: together } = first.summary();
  expect(together?.totals).toMatchObject({ reported: 2, ranks, weightChecksumsFailed: 0 });
  for (const { summary } of together?.each ?? []) {
    expect(summary?.checks.weightChecksumsPassed).toBeGreaterThan(0);
    expect(summary?.checks.maxLogprobDifference).not.toBeNull();
    expect(summary?.left).toEqual({ processes: 0, deviceBytes: 0 });
    // What came over the network left the GPUs with everything else.
    for (const gpu of summary?.gpus ?? []) expect(gpu.leftByTrainingBytes).toBe(0);
  }
}

/** What the trainer says of every batch and step, but for how long it took. */
function metricsOf(out: string): Record<string, unknown>[] {
  const lines = readFileSync(join(out, "metrics.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => {
    const row = JSON.parse(line) as Record<string, unknown>;
    const timed = ([name]: [string, unknown]): boolean => /^(time|tokens_per_second)\/|^wall|seconds/.test(name);
    return Object.fromEntries(Object.entries(row).filter((each) => !timed(each)));
  });
}

/** `baton grpo` of the demo's recipe under ZeRO-3, by one node or by one of two, as Kubeflow's trainer starts it. */
function grpo(folder: string, place: { readonly node: number; readonly port: number } | null): Baton {
  const each = place === null ? 2 : 1;
  const set = [
    ...["engine.tensorParallel=1", `engine.engines=${each}`, `gpus.count=${each}`, "grpo.zero_stage=3"],
    ...["grpo.batches=2", "grpo.prompts=16", "grpo.micro_batch=64", "grpo.gradient_accumulation_steps=1"],
    ...["grpo.held_out=null", "grpo.evaluate_every=null", "nodes.meetMs=60000"],
  ].flatMap((pair) => ["--set", pair]);
  const environment =
    place === null
      ? {}
      : {
          ...{ PET_NNODES: "2", PET_NODE_RANK: String(place.node), PET_NPROC_PER_NODE: "auto" },
          ...{ PET_MASTER_ADDR: "127.0.0.1", PET_MASTER_PORT: String(place.port) },
        };
  const own = place === null ? folder : folderOf(folder, place.node);
  return new Baton(
    own,
    ["grpo", join(root, "examples/demo.yaml"), "--out", join(folder, "out"), "--log", ...set],
    { BATON_PYTHON: python, TMPDIR: own, ...environment },
    join(folder, "out", partOf(place?.node ?? 0)),
  );
}

describe("two nodes train as one with as many ranks does", { timeout: 600_000 }, () => {
  it("with `baton grpo` under ZeRO-3, where weights cross the network", async () => {
    const one = await withFolder(async (folder) => {
      await finished(grpo(folder, null));
      return metricsOf(join(folder, "out"));
    });
    expect(one.filter(({ loss }) => typeof loss === "number")).toHaveLength(4);
    await withFolder(async (folder) => {
      const port = await freePorts();
      const nodes = [grpo(folder, { node: 0, port }), grpo(folder, { node: 1, port })] as const;
      await Promise.all(nodes.map(finished));
      expect(metricsOf(join(folder, "out"))).toEqual(one);
      expectProven(nodes[0], 2);
      // One set of results, and each node's own records of the run.
      expect(existsSync(join(folder, "out/model/model.safetensors"))).toBe(true);
      expect(readdirSync(join(folder, "out")).filter((name) => name.includes("grpo"))).toEqual(["grpo.json"]);
      expect(readdirSync(join(folder, "out/node-1")).sort()).toEqual([
        ...["events.jsonl", "logs", "summary.json", "trace.json"],
      ]);
    });
  });

  it.runIf(ALL)("under ZeRO-2, where each node has all weights", () =>
    trainsAsOne({ ...SHAPE, ranks: 1, engines: 1, tensorParallel: 1, zero: 2 }),
  );

  it.runIf(ALL)("under ZeRO-3", () => trainsAsOne({ ...SHAPE, ranks: 1, engines: 1, tensorParallel: 1, zero: 3 }));

  it.runIf(ALL)("under ZeRO-3 with several ranks each, and parameters that are kept whole", () =>
    trainsAsOne({ ...SHAPE, ranks: 2, engines: 1, tensorParallel: 2, zero: 3, defaultThreshold: true, tied: false }),
  );

  it.runIf(ALL)("under ZeRO-3 with adapters, merged before they cross", () =>
    trainsAsOne({ ...SHAPE, ranks: 2, engines: 1, tensorParallel: 2, zero: 3, lora: true }),
  );

  it.runIf(ALL)("under ZeRO-2 with several ranks each", () =>
    trainsAsOne({ ...SHAPE, ranks: 2, engines: 1, tensorParallel: 2, zero: 2 }),
  );

  it.runIf(ALL)("under ZeRO-2 with adapters, whose base lies in host memory once a node", () =>
    trainsAsOne({ ...SHAPE, ranks: 2, engines: 2, tensorParallel: 1, zero: 2, lora: true }),
  );
});

describe("weights that cross the network", { timeout: 300_000 }, () => {
  it("are summed where they come from: an engine that gets others is not let generate", () =>
    onTwoNodes(
      {
        ...{ ...SHAPE, ranks: 1, engines: 1, tensorParallel: 1, zero: 3 },
        environment: { BATON_FAULTS: "rank.peers.stale@2" },
      },
      async (nodes) => {
        for (const node of nodes) {
          const { output, code } = await node.ended;
          expect(output).toMatch(/WEIGHT_CHECKSUM_MISMATCH/);
          // Each node has a model folder of its own.
          expect(output).toMatch(/^warning: the nodes' commands differ: after `--model` .* on node 0 .* on node 1/m);
          expect(code).toBe(1);
          expect(node.summary().handoffs.toGeneration).toBe(1);
        }
      },
    ));
});

async function killed(phase: NodePhase, hit: number, victim: Victim): Promise<void> {
  // One rank alone is never seen to wait for others of its node.
  const size = phase === "arrive" ? 2 : 1;
  const sizes = { ranks: size, engines: 1, tensorParallel: size } as const;
  const shape = { ...SHAPE, ...sizes, zero: 3, steps: 60, pauseSeconds: 0.3 } as const;
  await onTwoNodes(shape, async (nodes, folder) => {
    await endTogether(nodes, folder, { phase, hit, victim, goneMs: GONE_MS });
  });
}

describe.runIf(ALL)("DeepSpeed's ranks on two nodes end together", { timeout: 300_000 }, () => {
  it.each([
    ["train", 1, "rank 0"],
    ["arrive", 0, "controller"],
    ["release", 1, "controller"],
    ["wake", 0, "rank 0"],
    ["plan", 1, "rank 0"],
    ["sync", 0, "rank 0"],
    ["cache", 1, "controller"],
    ["generate", 1, "rank 0"],
    ["generate", 0, "engine 0"],
    ["sleep", 0, "controller"],
    ["resume", 0, "rank 0"],
  ] as [NodePhase, number, Victim][])("in %s, of node %i: %s", (...one) => killed(...one));
});
