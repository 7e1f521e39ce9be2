/** Two nodes whose ranks a user's own launcher and script start: accelerate, and TRL's script with Baton's trainer. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FILES, launched } from "./accelerate.js";
import { type Baton, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { errorCodes } from "./remains.js";
import { expectSame, logOf, startBaton, type Training, trainWithBaton } from "./trl.js";
import { finished, folderOf, freePorts, type Place } from "./two-nodes.js";

async function bothNodes<T>(
  start: (folder: string, place: Place) => Baton,
  use: (nodes: readonly [Baton, Baton], folder: string) => Promise<T>,
): Promise<T> {
  return withFolder(async (folder) => {
    const port = await freePorts();
    const nodes = [0, 1].map((node) => start(folderOf(folder, node), { node, port })) as [Baton, Baton];
    try {
      return await use(nodes, folder);
    } finally {
      await Promise.all(nodes.map((node) => node.dispose()));
    }
  });
}

describe("accelerate launch on two nodes", { timeout: 180_000 }, () => {
  const files = Object.entries(FILES).filter(([name]) => ALL || name === "ZeRO-3");
  it.each(files)("with the file for %s trains, and every check passes", (name, config) =>
    bothNodes(
      (folder, place) => launched(folder, config, ["--steps", "2"], place),
      async (nodes) => {
        await Promise.all(nodes.map(finished));
        for (const node of nodes) {
          const { checks, topology, handoffs } = node.summary();
          expect(topology).toMatchObject({ ranks: 1, zeroStage: Number(name.at(-1)) });
          expect(handoffs.toTraining).toBe(2);
          expect(checks).toMatchObject({ weightChecksumsFailed: 0 });
          expect(checks.weightChecksumsPassed).toBeGreaterThan(0);
        }
        expect(nodes[0].summary().nodes?.totals).toMatchObject({ reported: 2, ranks: 2 });
      },
    ),
  );

  it.runIf(ALL)("that is not told of the other machine is refused on both", () =>
    bothNodes(
      (folder, place) => launched(folder, FILES["ZeRO-3"], [], place, { told: false }),
      async (nodes) => {
        for (const node of nodes) {
          const { output, code } = await node.ended;
          expect(code).toBe(1);
          expect(errorCodes(output), output).toEqual(["NODES_RANKS_DIFFER"]);
        }
      },
    ),
  );
});

describe("BatonGRPOTrainer on two nodes", { timeout: 400_000 }, () => {
  const config = {
    ...{ per_device_train_batch_size: 4, num_generations: 4, learning_rate: 1e-3, max_steps: 10, beta: 0.04 },
    ...{ generation_kwargs: { do_sample: false }, entropy_coef: 0.05 },
  };
  it.runIf(ALL).each([2, 3] as const)("trains as on one with as many ranks, under ZeRO-%i", async (zero) => {
    const training: Training = { zero, config };
    const one = await withFolder(async (folder) => {
      mkdirSync(join(folder, "one"));
      return (await trainWithBaton(join(folder, "one"), training)).log;
    });
    expect(new Set(one.map(({ loss }) => loss)).size).toBeGreaterThan(9);
    await bothNodes(
      (folder, place) => startBaton(folder, { ...training, place }),
      async (nodes, folder) => {
        await Promise.all(nodes.map(finished));
        expectSame(one, logOf(folderOf(folder, 0)));
        for (const node of nodes) {
          expect(node.summary()).toMatchObject({ batches: 10, checks: { weightChecksumsFailed: 0 } });
        }
      },
    );
  });
});
