/** Two nodes on one machine: two controllers, each with stand-in GPUs, a socket folder and a run folder of its own. */
import { mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { expect } from "vitest";
import type { NodePhase } from "../../src/phases/commands.js";
import { eventsOf } from "../../src/report/events.js";
import { type Baton, fixtures, processesWith } from "./baton.js";
import { type LightOptions, lightRun, partOf, python } from "./light.js";
import { allGone, errorCodes, nowMs } from "./remains.js";

/** One node of two. */
export interface Place {
  readonly node: number;
  readonly port: number;
}

/** The first of two ports that nobody listens on, one after the other. */
export async function freePorts(): Promise<number> {
  for (;;) {
    const first = await listenOn(0);
    if (first !== null && first < 65_000 && (await listenOn(first + 1)) !== null) return first;
  }
}

function listenOn(port: number): Promise<number | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(null));
    server.listen(port, () => {
      const address = server.address();
      server.close(() => resolve(address !== null && typeof address === "object" ? address.port : null));
    });
  });
}

/** The keys of a recipe that say which node this is. */
export function placed(node: number, port: number, count = 2): string[] {
  return [`nodes.count=${count}`, `nodes.rank=${node}`, "nodes.address=127.0.0.1", `nodes.port=${port}`];
}

export function folderOf(folder: string, node: number): string {
  const own = join(folder, String(node));
  mkdirSync(own, { recursive: true });
  return own;
}

/** One light node of two, or of more. */
export function lightNode(folder: string, node: number, port: number, options: LightOptions = {}, count = 2): Baton {
  const ranks = options.ranks ?? 2;
  return lightRun(folderOf(folder, node), {
    ...options,
    part: partOf(node),
    set: [...placed(node, port, count), "nodes.meetMs=20000", ...(options.set ?? [])],
    command: options.command ?? [
      python,
      join(fixtures, "light_launcher.py"),
      ...[String(ranks), "--node-rank", String(node), "--nnodes", String(count)],
    ],
  });
}

/** The process of a client, which has connected. */
export function pidOf(baton: Baton, name: string): number {
  const found = eventsOf(baton.events(), "process").find(
    ({ process, what }) => process === name && what === "connected",
  );
  if (found === undefined) throw new Error(`${name} has not connected`);
  return found.pid;
}

export async function finished(baton: Baton): Promise<void> {
  const ended = await baton.ended;
  expect(ended, ended.output).toMatchObject({ code: 0 });
}

export type Victim = "controller" | `rank ${number}` | `engine ${number}`;

/** What the node that was hit may say; but for the controller, which says nothing. */
function causeOf({ victim, signal }: Pick<Kill, "victim" | "signal">): RegExp {
  if (signal === "SIGSTOP") return /PROCESS_STOPPED/;
  return victim.startsWith("engine") ? /ENGINE_DIED|WORKER_DIED/ : /RANK_DIED|LAUNCHER_FAILED/;
}

/** Something of one node that is killed, or stopped, in a phase of its second handoff. */
export interface Kill {
  readonly phase: NodePhase;
  /** The node. */
  readonly hit: number;
  readonly victim: Victim;
  /** SIGSTOP is noticed when the phase's deadline is over, SIGKILL at once. */
  readonly signal?: "SIGKILL" | "SIGSTOP";
  /** Until both controllers have ended, and until nothing is left. */
  readonly goneMs: number;
}

/**
 * Both nodes end, each with one error about the same cause, and leave nothing.
 *
 * @returns when it was killed, and what the other node said
 */
export async function endTogether(nodes: readonly [Baton, Baton], folder: string, kill: Kill) {
  const { phase, hit, victim, goneMs, signal = "SIGKILL" } = kill;
  const [here, there] = hit === 0 ? nodes : ([nodes[1], nodes[0]] as const);
  // Plans are made once, before the first sync.
  const nth = phase === "plan" ? 1 : 2;
  await here.event(() => eventsOf(here.events(), "phase").filter(({ to }) => to === phase).length === nth);
  const pid = victim === "controller" ? here.pid : pidOf(here, victim);
  const at = nowMs();
  process.kill(pid, signal);
  const [victims, others] = await Promise.all([here.ended, there.ended]);
  expect(nowMs() - at, "ended after ms").toBeLessThan(goneMs);
  await allGone(folder, goneMs);
  expect(processesWith(folder)).toEqual([]);
  expect(errorCodes(others.output), others.output).toEqual([victim === "controller" ? "NODE_LOST" : "NODE_FAILED"]);
  expect(others.output).toContain(`node ${hit}`);
  expect(others.code).toBe(1);
  expect(there.summary().left).toEqual({ processes: 0, deviceBytes: 0 });
  if (victim !== "controller") {
    const cause = causeOf(kill).source;
    expect(others.output).toMatch(new RegExp(`node ${hit} ended the run: (${cause})`));
    expect(errorCodes(victims.output), victims.output).toEqual([expect.stringMatching(`^(${cause})$`)]);
    expect(victims.code).toBeGreaterThan(0);
    expect(nodes[0].summary().nodes?.each.map(({ summary }) => summary?.exit.reason)).toEqual(["failed", "failed"]);
  }
  return { at, there };
}
