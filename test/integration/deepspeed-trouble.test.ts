/** Real DeepSpeed ranks, started by torchrun in sessions of their own, when something of their run is killed. */
import { readdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { NodePhase } from "../../src/phases/commands.js";
import { eventsOf } from "../../src/report/events.js";
import { type Baton, processesWith, withFolder } from "./baton.js";
import { deepspeedRun } from "./deepspeed.js";
import { ALL } from "./extent.js";
import { allGone, controllerKilled, errorCodes, GONE_MS, nowMs } from "./remains.js";

const NOTICED_MS = 1_000;

/** Shared memory of DeepSpeed's collectives, which only an orderly end removes. */
const sharedMemory = (): string[] => readdirSync("/dev/shm").filter((name) => name.startsWith("deepspeed_"));

async function pidOf(baton: Baton, name: string): Promise<number> {
  const event = await baton.event((one) => one.type === "process" && one.process === name && one.what === "connected");
  return event.type === "process" ? event.pid : -1;
}

/** Runs until the phase of the second handoff, kills, and looks at what is left. */
async function hit(phase: NodePhase, victim: string, hitIt: (baton: Baton, folder: string) => Promise<void>) {
  await withFolder(async (folder) => {
    const others = new Set(sharedMemory());
    const baton = deepspeedRun(folder, {
      ...{ ranks: 2, engines: 1, tensorParallel: 2, zero: 3, dtype: "bfloat16", tied: true, keyValueHeads: 2 },
      steps: 50,
      pauseSeconds: 0.2,
    });
    try {
      await pidOf(baton, victim === "controller" ? "rank 0" : victim);
      await baton.event(() => eventsOf(baton.events(), "phase").filter(({ to }) => to === phase).length === 2);
      const ours = sharedMemory().filter((name) => !others.has(name));
      expect(ours.length, "DeepSpeed's files in /dev/shm").toBeGreaterThan(0);
      await hitIt(baton, folder);
      expect(processesWith(folder)).toEqual([]);
      expect(sharedMemory().filter((name) => ours.includes(name))).toEqual([]);
    } finally {
      await baton.dispose();
    }
  });
}

async function killed(baton: Baton, victim: string, code: RegExp): Promise<void> {
  const pid = await pidOf(baton, victim);
  const at = nowMs();
  process.kill(pid, "SIGKILL");
  const ended = await baton.ended;
  expect(nowMs() - at, "gone after ms").toBeLessThan(GONE_MS);
  const codes = errorCodes(ended.output);
  expect(codes, ended.output).toHaveLength(1);
  expect(codes[0]).toMatch(code);
  expect(ended.code).toBeGreaterThan(0);
  const end = eventsOf(baton.events(), "phase").find((one) => one.to === "end");
  expect((end?.monotonicMs ?? Number.POSITIVE_INFINITY) - at, "noticed after ms").toBeLessThan(NOTICED_MS);
  expect(baton.summary().left).toEqual({ processes: 0, deviceBytes: 0 });
}

describe("nothing is left of DeepSpeed's ranks", { timeout: 300_000 }, () => {
  it("when a rank is killed in a sync", () =>
    hit("sync", "rank 1", (baton) => killed(baton, "rank 1", /^(RANK_DIED|LAUNCHER_FAILED)$/)));

  it.runIf(ALL)("when a worker is killed while it generates", () =>
    hit("generate", "worker 0 of engine 0", (baton) =>
      killed(baton, "worker 0 of engine 0", /^(WORKER_DIED|ENGINE_DIED)$/),
    ),
  );

  it("when the controller is killed in a release", () =>
    hit("release", "controller", async (baton, folder) => {
      await controllerKilled(baton, folder);
      await allGone(folder, GONE_MS);
    }));
});
