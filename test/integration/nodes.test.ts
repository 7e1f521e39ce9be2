/** Two nodes in one run, each with a controller, engines and light ranks of its own. */
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { NodePhase } from "../../src/phases/commands.js";
import { eventsOf } from "../../src/report/events.js";
import { type Baton, fixtures, processesWith, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { type LightOptions, limited, python } from "./light.js";
import { allGone, errorCodes, GONE_MS } from "./remains.js";
import { endTogether, finished, freePorts, lightNode, type Victim } from "./two-nodes.js";

const PHASES = ["train", "arrive", "release", "wake", "plan", "sync", "cache", "generate", "sleep", "resume"] as const;
const NOTICED_MS = 1_000;
/** Two runs each, on two cores. */
const atOnce = limited(2);

/** Both nodes; `options` by node, and the folder of both. */
async function twoNodes<T>(
  options: (node: number, folder: string) => LightOptions,
  use: (nodes: readonly [Baton, Baton], folder: string) => Promise<T>,
): Promise<T> {
  return atOnce(() =>
    withFolder(async (folder) => {
      const port = await freePorts();
      const nodes = [0, 1].map((node) => lightNode(folder, node, port, options(node, folder))) as [Baton, Baton];
      try {
        const result = await use(nodes, folder);
        expect(processesWith(folder)).toEqual([]);
        return result;
      } finally {
        await Promise.all(nodes.map((node) => node.dispose()));
      }
    }),
  );
}

describe("two nodes", () => {
  it("train together, and node 0 reports for both", async () => {
    await twoNodes(
      () => ({ environment: { BATON_NODES_KEY: "a secret" } }),
      async (nodes) => {
        for (const node of nodes) {
          await finished(node);
          expect((await node.ended).output).not.toMatch(/warning:|no key/);
        }
        const summary = nodes[0].summary();
        expect(summary).toMatchObject({ topology: { ranks: 2 }, handoffs: { toGeneration: 3 } });
        expect(summary.nodes).toMatchObject({
          count: 2,
          each: [
            { node: 0, folder: nodes[0].out, summary: { exit: { code: 0 }, handoffs: { toGeneration: 3 } } },
            {
              node: 1,
              folder: nodes[1].out,
              summary: { exit: { code: 0 }, handoffs: { toTraining: 3 } },
            },
          ],
          totals: { reported: 2, gpus: 4, ranks: 4, engines: 2, left: { processes: 0, deviceBytes: 0 } },
        });
        expect(summary.nodes?.totals.weightChecksumsPassed).toBeGreaterThan(summary.checks.weightChecksumsPassed);
        const [here, there] = nodes.map((node) => eventsOf(node.events(), "started")[0]?.nodes);
        expect(here).toMatchObject({ node: 0, count: 2 });
        expect(there).toEqual({ ...here, node: 1 });
      },
    );
  });
});

describe.runIf(ALL)("four nodes", () => {
  const fourNodes = async (folder: string, options: LightOptions): Promise<Baton[]> => {
    const port = await freePorts();
    return [0, 1, 2, 3].map((node) => lightNode(folder, node, port, options, 4));
  };

  it("train together", async () => {
    await withFolder(async (folder) => {
      const nodes = await fourNodes(folder, {});
      for (const node of nodes) expect(await node.ended).toMatchObject({ code: 0 });
      expect(nodes[0]?.summary().nodes?.totals).toMatchObject({ reported: 4, ranks: 8 });
    });
  });

  it("end together", async () => {
    await withFolder(async (folder) => {
      const nodes = await fourNodes(folder, { steps: 60, pauseSeconds: 0.15 });
      await nodes[2]?.event((event) => event.type === "phase" && event.to === "generate");
      process.kill(nodes[2]?.pid as number, "SIGKILL");
      for (const [node, baton] of nodes.entries()) {
        const { output } = await baton.ended;
        expect(errorCodes(output), output).toEqual(node === 2 ? [] : ["NODE_LOST"]);
      }
      const summaries = nodes[0]?.summary().nodes?.each.map(({ summary }) => summary !== null);
      expect(summaries).toEqual([true, true, false, true]);
      await allGone(folder, GONE_MS);
    });
  });
});

async function killed(phase: NodePhase, hit: number, victim: Victim): Promise<void> {
  await twoNodes(
    () => ({ steps: 60, pauseSeconds: 0.15 }),
    async (nodes, folder) => {
      const { at, there } = await endTogether(nodes, folder, { phase, hit, victim, goneMs: GONE_MS });
      const end = eventsOf(there.events(), "phase").find(({ to }) => to === "end");
      expect((end?.monotonicMs ?? Number.POSITIVE_INFINITY) - at, "noticed after ms").toBeLessThan(NOTICED_MS);
    },
  );
}

describe("what dies on one node ends the run on both", { timeout: 300_000 }, () => {
  type Case = [NodePhase, number, Victim];
  const some: Case[] = [
    ["sync", 1, "rank 1"],
    ["generate", 0, "controller"],
    ["train", 1, "controller"],
  ];
  const every = PHASES.flatMap((phase) =>
    [0, 1].flatMap((node) =>
      (["rank 1", "controller", "engine 0"] as const).map((victim): Case => [phase, node, victim]),
    ),
  );
  it.concurrent.each(ALL ? every : some)("in %s, of node %i: %s", (...one) => killed(...one));

  it.runIf(ALL).each([0, 1])(
    "and so does a rank of node %i that stands still, when its deadline is over",
    async (hit) => {
      const deadlineMs = 3_000;
      // Its node waits for it to arrive where another rank has.
      const set = ["train", "arrive"].map((name) => `deadlines.${name}Ms=${deadlineMs}`);
      await twoNodes(
        () => ({ steps: 60, pauseSeconds: 0.15, set }),
        async (nodes, folder) => {
          // Stopped processes are looked for once a second: to see them, and that time is up.
          const goneMs = deadlineMs + 2_000 + GONE_MS;
          await endTogether(nodes, folder, { phase: "train", hit, victim: "rank 1", signal: "SIGSTOP", goneMs });
        },
      );
    },
  );
});

/** A folder in which Python finds these packages, of another version than those that are installed. */
function otherVersions(folder: string, version: string, names: readonly string[]): string {
  for (const name of names) {
    const info = join(folder, `${name.replace("-", "_")}-${version}.dist-info`);
    mkdirSync(info, { recursive: true });
    writeFileSync(join(info, "METADATA"), `Metadata-Version: 2.1\nName: ${name}\nVersion: ${version}\n`);
  }
  return folder;
}

type Refusal = readonly [code: string, ...words: (string | RegExp)[]];

/** Both are refused at the start, before any engine or rank: what each says. */
async function refused(
  says: readonly [Refusal, Refusal],
  options: (node: number, folder: string) => LightOptions,
): Promise<void> {
  await twoNodes(options, async (nodes) => {
    for (const [node, baton] of nodes.entries()) {
      const { output, code } = await baton.ended;
      const [expected, ...words] = says[node] as Refusal;
      expect(errorCodes(output), output).toEqual([expected]);
      for (const word of words) expect(output).toMatch(word);
      expect(code).toBe(1);
      expect(existsSync(join(baton.out, "events.jsonl"))).toBe(false);
    }
  });
}

describe("nodes that do not fit together are refused at the start", () => {
  it.concurrent("with different recipes or versions: on both, by what differs and where", () => {
    const recipes = ["deadlines.syncMs: 60000 on node 0", "1234 on node 1"];
    const versions = ["package trl: ", "package math-verify: "].map(
      (name) => new RegExp(`${name}.* on node 0 .*, 0\\.0\\.7 on node 1`),
    );
    const says: Refusal = ["NODES_DIFFER", ...recipes, ...versions];
    return refused([[...says, "the nodes have no key"], says], (node, folder) =>
      node === 0
        ? {}
        : {
            set: ["deadlines.syncMs=1234"],
            environment: { PYTHONPATH: otherVersions(join(folder, "packages"), "0.0.7", ["trl", "math-verify"]) },
          },
    );
  });

  it.concurrent("with different keys: the stranger at once, the other for want of the right one", () =>
    refused([["NODE_MISSING", "node 1", "another key"], ["NODES_KEY_DIFFERS"]], (node) => ({
      environment: { BATON_NODES_KEY: `key ${node}` },
      set: ["nodes.meetMs=3000"],
    })));

  it.concurrent.each([0, 1])("because of node %i alone, before they met: the other hears of it", (bad) => {
    const own: Refusal = ["RECIPE_INVALID", "engine.maxSequences=-1"];
    const heard: Refusal = ["NODE_FAILED", `node ${bad} (`, "did not begin: RECIPE_INVALID", `On node ${bad}: `];
    return refused(bad === 0 ? [own, heard] : [heard, own], (node) => ({
      set: node === bad ? ["engine.maxSequences=-1"] : [],
    }));
  });

  it.concurrent("or, where the launchers were not told of each other, when the first rank says so", async () => {
    const alone = [python, join(fixtures, "light_launcher.py"), "2"];
    await twoNodes(
      () => ({ command: alone }),
      async (nodes) => {
        for (const node of nodes) {
          const { output, code } = await node.ended;
          expect(errorCodes(output), output).toEqual(["NODES_RANKS_DIFFER"]);
          expect(code).toBe(1);
        }
      },
    );
  });

  it.concurrent("because of something of one node alone, after they met: the other hears of it", async () => {
    const long = `/tmp/${"x".repeat(120)}`;
    await twoNodes(
      (node) => (node === 1 ? { environment: { XDG_RUNTIME_DIR: long, TMPDIR: long } } : {}),
      async ([first, second]) => {
        expect(errorCodes((await second.ended).output)).toEqual(["SOCKET_PATH_TOO_LONG"]);
        const { output, code } = await first.ended;
        expect(errorCodes(output), output).toEqual(["NODE_FAILED"]);
        expect(output).toContain("node 1 ended the run: SOCKET_PATH_TOO_LONG");
        expect(code).toBe(1);
        expect(first.summary().nodes?.totals).toMatchObject({ reported: 1, left: { processes: null } });
      },
    );
  });
});
