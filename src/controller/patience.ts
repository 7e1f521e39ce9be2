/** How long each phase of the node may last, and who is stopped for longer than that. */
import type { NodePhase } from "../phases/commands.js";
import type { Deadlines } from "../phases/config.js";
import type { Failure } from "../protocol/messages.js";

/** How long a phase may last, all its waits one after the other, in ms. */
export function phaseDeadlineMs(deadlines: Deadlines, phase: NodePhase): number {
  const byPhase: Readonly<Record<NodePhase, number>> = {
    start: deadlines.startMs,
    train: deadlines.trainMs,
    arrive: deadlines.arriveMs,
    release: deadlines.releaseMs,
    wake: deadlines.roomMs + deadlines.wakeMs,
    plan: deadlines.planMs,
    sync: deadlines.syncMs,
    // Sums are made beside all that; what comes of them is compared afterwards.
    cache: Math.max(deadlines.releaseMs + deadlines.roomMs + deadlines.wakeMs, deadlines.syncMs) + deadlines.syncMs,
    generate: deadlines.generateIdleMs,
    sleep: deadlines.sleepMs,
    resume: deadlines.roomMs + deadlines.resumeMs,
    finish: deadlines.trainMs,
    end: deadlines.stopMs,
  };
  return byPhase[phase];
}

/** How long a process may be stopped in a phase, in ms: as long as the longest of the phase's waits. */
export function stopDeadlineMs(deadlines: Deadlines, phase: NodePhase): number {
  const { releaseMs, roomMs, wakeMs, syncMs, resumeMs } = deadlines;
  if (phase === "wake") return Math.max(roomMs, wakeMs);
  if (phase === "cache") return Math.max(releaseMs, roomMs, wakeMs, syncMs);
  if (phase === "resume") return Math.max(roomMs, resumeMs);
  return phaseDeadlineMs(deadlines, phase);
}

export interface Watched {
  readonly name: string;
  readonly pid: number;
  /** As in /proc/PID/stat. */
  readonly state: string;
}

/** A process that has been stopped for too long. */
export interface Late {
  readonly who: Watched;
  /** Of the phase in which it was stopped. */
  readonly deadlineMs: number;
}

/**
 * Finds processes that are stopped (SIGSTOP, Ctrl-Z, a debugger). A client that owes an answer is found by the
 * deadline of its phase anyway; one that owes none yet, or a launcher, is found here: after one deadline, that of the
 * phase in which it was stopped, however many phases go on without it.
 */
export class StopWatch {
  /** When each was first seen stopped, and how long it may be, by process id. */
  #stopped = new Map<number, { readonly sinceMs: number; readonly deadlineMs: number }>();

  /** Looks at all of them now. @returns the one that has been stopped for longest, if for too long */
  look(watched: readonly Watched[], nowMs: number, deadlineMs: number): Late | null {
    const stopped = watched.filter((who) => isStopped(who.state));
    this.#stopped = new Map(stopped.map(({ pid }) => [pid, this.#stopped.get(pid) ?? { sinceMs: nowMs, deadlineMs }]));
    const late = stopped.flatMap((who) => {
      const seen = this.#stopped.get(who.pid);
      return seen === undefined || nowMs - seen.sinceMs <= seen.deadlineMs ? [] : [{ who, ...seen }];
    });
    return late.sort((a, b) => a.sinceMs - b.sinceMs)[0] ?? null;
  }
}

/** Whether this state of /proc/PID/stat is that of a stopped process. */
export function isStopped(state: string): boolean {
  return state === "T" || state === "t";
}

export function stoppedFailure(stopped: readonly Watched[], expected: string): Failure {
  const names = stopped.map(({ name, pid }) => `${name} (process ${pid})`);
  return {
    code: "PROCESS_STOPPED",
    message: `${names.join(", ")} ${names.length === 1 ? "is" : "are"} stopped`,
    expected,
    found: "state T: stopped by SIGSTOP, Ctrl-Z or a debugger",
    action: "Let it run (kill -CONT) sooner, or give the deadline of this phase more time in the recipe.",
  };
}
