/** How long each phase of the node may last, and who is stopped for longer than that. */
import type { NodePhase } from "../phases/commands.js";
import type { Deadlines } from "../phases/config.js";
import type { Failure } from "../protocol/messages.js";

/** The longest wait of a phase, in ms. */
export function phaseDeadlineMs(deadlines: Deadlines, phase: NodePhase): number {
  const byPhase: Readonly<Record<NodePhase, number>> = {
    start: deadlines.startMs,
    train: deadlines.trainMs,
    arrive: deadlines.arriveMs,
    release: deadlines.releaseMs,
    wake: deadlines.roomMs + deadlines.wakeMs,
    plan: deadlines.planMs,
    sync: deadlines.syncMs,
    cache: deadlines.releaseMs + deadlines.roomMs + deadlines.wakeMs,
    generate: deadlines.generateIdleMs,
    sleep: deadlines.sleepMs,
    resume: deadlines.roomMs + deadlines.resumeMs,
    finish: deadlines.trainMs,
    end: deadlines.stopMs,
  };
  return byPhase[phase];
}

export interface Watched {
  readonly name: string;
  readonly pid: number;
  /** As in /proc/PID/stat. */
  readonly state: string;
}

/**
 * Finds processes that are stopped (SIGSTOP, Ctrl-Z, a debugger). A client that owes an answer is found by the
 * deadline of its phase anyway; a launcher owes none and is found here.
 */
export class StopWatch {
  /** When each was first seen stopped, by process id. */
  #since = new Map<number, number>();

  /** Looks at all of them now. @returns the one that has been stopped for longest, if for more than `deadlineMs` */
  look(watched: readonly Watched[], nowMs: number, deadlineMs: number): Watched | null {
    const stopped = watched.filter((who) => isStopped(who.state));
    this.#since = new Map(stopped.map(({ pid }) => [pid, this.#since.get(pid) ?? nowMs]));
    const late = stopped.filter(({ pid }) => nowMs - (this.#since.get(pid) ?? nowMs) > deadlineMs);
    return late.sort((a, b) => (this.#since.get(a.pid) ?? 0) - (this.#since.get(b.pid) ?? 0))[0] ?? null;
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
