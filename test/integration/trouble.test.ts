/**
 * Whatever dies or stops, in whatever phase: one clear error, an exit code that is not 0, noticed within a second
 * (a stop: by its phase's deadline), everything gone within three, no device memory left.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { NodePhase } from "../../src/phases/commands.js";
import { eventsOf } from "../../src/report/events.js";
import { type Baton, fixtures, processesWith, withFolder } from "./baton.js";
import { taken } from "./extent.js";
import { lightRun, limited, python } from "./light.js";
import { allGone, controllerKilled, errorCodes, GONE_MS, nowMs } from "./remains.js";

const PHASES = [
  "start",
  "train",
  "arrive",
  "release",
  "wake",
  "plan",
  "sync",
  "cache",
  "generate",
  "sleep",
  "resume",
] as const;
const VICTIMS = ["rank 1", "worker 0 of engine 0", "engine 0", "launcher", "controller"] as const;
type Victim = (typeof VICTIMS)[number];

/** Every phase and every victim has its turn; see `taken`. */
function some(step: number): (readonly [NodePhase, Victim])[] {
  const pairs = PHASES.flatMap((phase, row) => VICTIMS.map((victim, column) => ({ phase, row, victim, column })));
  return pairs.filter(({ row, column }) => taken(row, column, step)).map(({ phase, victim }) => [phase, victim]);
}

/** A death is noticed in 1 s and cleaned up in 3; some of each second belongs to a busy test machine. */
const NOTICED_MS = 1_000;
/** Of every phase but the start, for stopped processes. */
const DEADLINE_MS = 2_500;
const START_MS = 15_000;
/** Stopped processes are looked for once a second: at first to see them, at last to see that time is up. */
const SEEN_MS = 2_000;
/** A start that must come to its end, on a busy machine. */
const BUSY_START_MS = 100_000;

const atOnce = limited(3);
/** Stopped processes mostly wait for a deadline. */
const moreAtOnce = limited(5);

/** Errors that say what happened. A process that lost its peer may speak before the death is known. */
const EXPECTED: Readonly<Record<Exclude<Victim, "controller">, RegExp>> = {
  "rank 1": /^(RANK_DIED|LAUNCHER_FAILED)$/,
  "worker 0 of engine 0": /^(WORKER_DIED|ENGINE_DIED)$/,
  "engine 0": /^(ENGINE_DIED|WORKER_DIED)$/,
  launcher: /^LAUNCHER_FAILED$/,
};

/** The process id of a victim, once it is known. */
async function pidOf(baton: Baton, victim: Victim): Promise<number> {
  if (victim === "controller") {
    // With nothing below it there is nobody to notice.
    await pidOf(baton, "launcher");
    return baton.pid;
  }
  if (victim !== "launcher") {
    const event = await baton.event(
      (one) => one.type === "process" && one.process === victim && one.what === "connected",
    );
    return event.type === "process" ? event.pid : -1;
  }
  const guard = await baton.event((one) => one.type === "process" && one.process === "launcher");
  for (;;) {
    const child = childrenOf(guard.type === "process" ? guard.pid : -1)[0];
    if (child !== undefined) return child;
    await sleep(5);
  }
}

function childrenOf(parent: number): number[] {
  return readdirSync("/proc").flatMap((name) => {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, "latin1");
      return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]) === parent ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

/** Waits for the phase, and for the victim to be there. */
async function meet(baton: Baton, phase: NodePhase, victim: Victim): Promise<number> {
  await baton.event((one) => one.type === "phase" && one.to === phase);
  return pidOf(baton, victim);
}

async function killed(phase: NodePhase, victim: Victim): Promise<void> {
  await withFolder(async (folder) => {
    const baton = lightRun(folder, { pauseSeconds: 0.05 });
    try {
      const pid = await meet(baton, phase, victim);
      if (victim === "controller") return await controllerKilled(baton, folder);
      const at = nowMs();
      process.kill(pid, "SIGKILL");
      const ended = await baton.ended;
      expect(nowMs() - at, "gone after ms").toBeLessThan(GONE_MS);
      expect(processesWith(folder)).toEqual([]);
      const codes = errorCodes(ended.output);
      expect(codes, ended.output).toHaveLength(1);
      expect(codes[0]).toMatch(EXPECTED[victim]);
      expect(ended.code).toBeGreaterThan(0);
      const end = eventsOf(baton.events(), "phase").find((one) => one.to === "end");
      expect((end?.monotonicMs ?? Number.POSITIVE_INFINITY) - at, "noticed after ms").toBeLessThan(NOTICED_MS);
      expect(baton.summary()).toMatchObject({
        left: { processes: 0, deviceBytes: 0 },
        exit: { reason: "failed", code: ended.code },
      });
      expect(readdirSync(folder)).toEqual(["out"]);
    } finally {
      await baton.dispose();
    }
  });
}

async function stopped(phase: NodePhase, victim: Victim): Promise<void> {
  await withFolder(async (folder) => {
    const deadlines = [
      "train",
      "arrive",
      "release",
      "room",
      "wake",
      "plan",
      "sync",
      "generateIdle",
      "rollout",
      "sleep",
      "resume",
    ];
    const baton = lightRun(folder, {
      pauseSeconds: 0.05,
      set: [
        ...deadlines.map((name) => `deadlines.${name}Ms=${DEADLINE_MS}`),
        `deadlines.startMs=${phase === "start" ? START_MS : BUSY_START_MS}`,
      ],
    });
    try {
      const pid = await meet(baton, phase, victim);
      const at = nowMs();
      process.kill(pid, "SIGSTOP");
      if (victim === "controller") {
        // Its guards end everything; it sees that when it is let go on.
        await allGone(folder, DEADLINE_MS + GONE_MS, pid);
        process.kill(pid, "SIGCONT");
        const ended = await baton.ended;
        expect(errorCodes(ended.output)).toEqual(["CONTROLLER_STOPPED"]);
        expect(ended.code).toBeGreaterThan(0);
        expect(baton.summary().left).toEqual({ processes: 0, deviceBytes: 0 });
        return;
      }
      const ended = await baton.ended;
      const allowed = (phase === "start" ? START_MS : DEADLINE_MS) + SEEN_MS + GONE_MS;
      expect(nowMs() - at, "gone after ms").toBeLessThan(allowed);
      expect(errorCodes(ended.output), ended.output).toEqual(["PROCESS_STOPPED"]);
      expect(ended.output).toContain(victim);
      expect(ended.output).toContain(String(pid));
      expect(ended.code).toBeGreaterThan(0);
      expect(processesWith(folder)).toEqual([]);
      expect(baton.summary()).toMatchObject({ left: { processes: 0, deviceBytes: 0 }, exit: { reason: "failed" } });
    } finally {
      try {
        process.kill(baton.pid, "SIGCONT");
      } catch {
        // It has ended.
      }
      await baton.dispose();
    }
  });
}

describe.concurrent("a process that is killed", { timeout: 600_000 }, () => {
  for (const [phase, victim] of some(2)) it(`in phase ${phase}: ${victim}`, () => atOnce(() => killed(phase, victim)));
});

describe.concurrent("a launcher that is told to end by SIGTERM", { timeout: 600_000 }, () => {
  // The first dies of it; torchrun ends its ranks first, which says nothing of itself.
  const torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"];
  const launchers: readonly [string, readonly string[] | undefined][] = [
    ["one that minds no signal", undefined],
    ["torchrun", [...torchrun, join(fixtures, "light_rank.py")]],
  ];
  for (const [name, command] of launchers) {
    it(name, () =>
      atOnce(() =>
        withFolder(async (folder) => {
          const baton = lightRun(folder, { pauseSeconds: 0.05, steps: 100, ...(command && { command }) });
          try {
            process.kill(await meet(baton, "generate", "launcher"), "SIGTERM");
            const ended = await baton.ended;
            expect(errorCodes(ended.output), ended.output).toEqual(["LAUNCHER_FAILED"]);
            expect(ended.output).toContain("SIGTERM");
            expect(baton.summary()).toMatchObject({ left: { processes: 0, deviceBytes: 0 } });
          } finally {
            await baton.dispose();
          }
        }),
      ),
    );
  }
});

describe.concurrent("a process that is stopped", { timeout: 600_000 }, () => {
  for (const [phase, victim] of some(5)) {
    it(`in phase ${phase}: ${victim}`, () => moreAtOnce(() => stopped(phase, victim)));
  }
});
