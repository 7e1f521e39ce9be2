/** Adds to a failure what only the shell can see: who is stopped, who holds the memory that is missing. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Ledger } from "../memory/index.js";
import { type Nvml, processInfo } from "../native.js";
import type { NodePhase } from "../phases/commands.js";
import type { ProcessExit } from "../phases/events.js";
import { describeExit, launcherEndedRanks, launcherFailed } from "../phases/failures.js";
import type { Failure } from "../protocol/messages.js";
import type { Child } from "./children.js";
import { causeOfLostPeer, type MemberEnd } from "./lost-peer.js";
import type { EndCommand } from "./node.js";
import { stoppedFailure, type Watched } from "./patience.js";
import { asTooSmall } from "./too-small.js";

export interface Surroundings {
  readonly nvml: Pick<Nvml, "memory" | "processes" | "simulated">;
  /** Of this moment. */
  readonly ledger: Pick<Ledger, "whoHolds" | "measured">;
  /** Name of a process of the run; null for others. */
  readonly nameOf: (pid: number) => string | null;
  /** Processes of the run that are stopped now. */
  readonly stopped: readonly Watched[];
  /** Whether this process itself may have been stopped, so that its guards ended the run; in ms. */
  readonly pausedMs: number;
  readonly stoppedDeadlineMs: number;
  readonly children: readonly Pick<Child, "name" | "commandEnded" | "ended">[];
  /** Ranks and workers that have joined. */
  readonly members: readonly MemberEnd[];
  /** Of the node, when the run ended. */
  readonly phase: NodePhase;
}

/** As in native/guard: the exit code of a guard that ended its command because the controller was stopped. */
const GUARD_SAW_A_STOP = 124;
const GUARDS_MS = 500;
/** A launcher that is told to end signals its ranks within a moment; for one that died it looks every 100 ms. */
const AT_ONCE_MS = { poll: 2, most: 10 };
/** How a rank ends by its launcher's hand: one that waits for it leaves nothing to read. */
const BY_LAUNCHER: readonly string[] = [
  describeExit({ code: null, signal: "SIGTERM" }),
  describeExit({ code: null, signal: null }),
];

/** The failure that the user reads; null when the run ended in order. */
export async function explain(end: EndCommand, surroundings: Surroundings): Promise<Failure | null> {
  if (end.failure === null) return null;
  const failure = await causeOfLostPeer(end.failure, end.from, surroundings.members, surroundings.phase);
  if (surroundings.pausedMs > surroundings.stoppedDeadlineMs && (await guardsSawAStop(surroundings.children))) {
    return controllerStopped(surroundings);
  }
  const launcher = await killedLauncher(failure, surroundings.children);
  if (launcher !== null) return launcherFailed(launcher);
  const ranks = surroundings.members.filter(({ client }) => client.role === "rank");
  if (await endedTogether(failure, ranks)) return launcherEndedRanks(ranks.length);
  if (surroundings.stopped.length > 0 && failure.code === "DEADLINE") {
    return stoppedFailure(surroundings.stopped, `${failure.expected}; but ${failure.message}`);
  }
  if (end.gpus.length === 0) return failure;
  const holders = await Promise.all(end.gpus.map((gpu) => holdersOf(gpu, surroundings)));
  const said = surroundings.nvml.simulated ? asTooSmall(failure) : failure;
  return { ...said, found: [said.found, ...holders].filter((text) => text !== "").join("; ") };
}

/** Whether a guard says so, as soon as one does; those that end soon are waited for. */
async function guardsSawAStop(children: Surroundings["children"]): Promise<boolean> {
  const exits = children.map(async ({ ended }) => {
    if ((await ended).code !== GUARD_SAW_A_STOP) throw new Error("ended otherwise");
    return true;
  });
  return Promise.race([Promise.any(exits).catch(() => false), sleep(GUARDS_MS, false)]);
}

/**
 * How the launcher ended, if it was killed and a rank's failure is what came of it: ranks die with their launcher, by
 * its hand or the guard's, and the guard ends after the last of them. A launcher that gives up because of a rank lives
 * when the rank dies, and ends with a code.
 */
async function killedLauncher(failure: Failure, children: Surroundings["children"]): Promise<ProcessExit | null> {
  const launcher = children.find(({ name }) => name === "launcher");
  if (launcher === undefined || !/^rank \d/.test(failure.message) || !launcher.commandEnded()) return null;
  const exit = await Promise.race([launcher.ended, sleep(GUARDS_MS, null)]);
  return exit !== null && exit.signal !== null ? exit : null;
}

/**
 * Whether a rank's death is one of all ranks at once. So launchers answer SIGTERM: torchrun and accelerate end their
 * ranks first, and themselves a second later, with the code that they have for every failure. One rank alone cannot be
 * told from one that was signalled itself.
 */
async function endedTogether({ code, found }: Failure, ranks: readonly MemberEnd[]): Promise<boolean> {
  if (code !== "RANK_DIED" || ranks.length < 2 || !BY_LAUNCHER.some((text) => found.startsWith(text))) return false;
  const end = performance.now() + AT_ONCE_MS.most;
  for (;;) {
    if (ranks.every(({ ended }) => ended())) return true;
    if (performance.now() >= end) return false;
    await sleep(AT_ONCE_MS.poll);
  }
}

function controllerStopped({ pausedMs, stoppedDeadlineMs }: Surroundings): Failure {
  return {
    code: "CONTROLLER_STOPPED",
    message: "the controller itself was stopped for so long that its guards ended the run",
    expected: `a controller that is stopped for at most ${stoppedDeadlineMs} ms`,
    found: `it did not run for ${Math.round(pausedMs)} ms: SIGSTOP, Ctrl-Z or a debugger`,
    action: "Do not stop the controller; end a run with Ctrl-C.",
  };
}

async function holdersOf(gpu: number, { ledger, nvml, nameOf }: Surroundings): Promise<string> {
  try {
    const { usedBytes, totalBytes } = nvml.memory(gpu);
    ledger.measured(gpu, totalBytes, usedBytes);
    const processes = (await nvml.processes(gpu)).map(({ pid, usedBytes: held }) => ({
      name: nameOf(pid) ?? processInfo(pid)?.command ?? "a process of another container",
      pid,
      usedBytes: held,
    }));
    return ledger.whoHolds(gpu, processes);
  } catch {
    return `GPU ${gpu}: its memory cannot be read`;
  }
}
