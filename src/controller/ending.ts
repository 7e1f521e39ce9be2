/**
 * Ending every process below the controller, whatever sessions and groups they are in. The controller is a child
 * subreaper: what loses its parent becomes its child, and so stays findable until it is gone.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { descendants, monotonicNs, openPidfd, type ProcessInfo, reap } from "../native.js";

/** Often enough to be done in time, seldom enough to cost nothing. */
const POLL_MS = 10;

/** Children of this process that are not of the run: those that it had before. */
export class Bystanders {
  readonly #pids = new Set(descendants(process.pid).map(({ pid }) => pid));

  /** Processes below this one, without bystanders and what is below those. Parents come first. */
  without(): ProcessInfo[] {
    const apart = new Set(this.#pids);
    return descendants(process.pid).filter(({ pid, ppid }) => {
      if (apart.has(ppid)) apart.add(pid);
      return !apart.has(pid);
    });
  }
}

/** Processes of the run that have not ended yet. */
export function livingDescendants(bystanders: Bystanders): ProcessInfo[] {
  return bystanders.without().filter((info) => info.state !== "Z" && info.state !== "X");
}

/** Sends a signal to a process if it is still the one that was meant. */
export function signalProcess(info: Pick<ProcessInfo, "pid" | "startTime">, signal: number): boolean {
  try {
    const pidfd = openPidfd(info.pid);
    try {
      return pidfd.startTime === info.startTime && pidfd.signal(signal);
    } finally {
      pidfd.close();
    }
  } catch {
    // Gone between being listed and being opened.
    return false;
  }
}

/**
 * Kills (SIGKILL) every descendant, again and again, until there is none or the deadline has passed: a process may
 * fork while it is being looked for.
 *
 * @param guards children that Node itself waits for; they are killed, but not reaped here
 * @returns those that are left
 */
export async function killDescendants(
  deadlineMs: number,
  bystanders: Bystanders,
  guards: ReadonlySet<number>,
): Promise<ProcessInfo[]> {
  const SIGKILL = 9;
  const end = monotonicNs() + BigInt(Math.ceil(deadlineMs)) * 1_000_000n;
  for (;;) {
    const living = livingDescendants(bystanders);
    for (const info of living) signalProcess(info, SIGKILL);
    reapAdopted(bystanders, guards);
    if (living.length === 0 || monotonicNs() > end) return living;
    await sleep(POLL_MS);
  }
}

/**
 * Waits until no descendant is left; true when so before the deadline and before `hurry` is aborted. Adopted ones are
 * reaped.
 */
export async function waitForDescendants(
  deadlineMs: number,
  bystanders: Bystanders,
  guards: ReadonlySet<number>,
  hurry: AbortSignal,
): Promise<boolean> {
  const end = monotonicNs() + BigInt(Math.ceil(deadlineMs)) * 1_000_000n;
  for (;;) {
    reapAdopted(bystanders, guards);
    if (livingDescendants(bystanders).length === 0) return true;
    if (hurry.aborted || monotonicNs() > end) return false;
    await sleep(POLL_MS);
  }
}

/** Takes the exit status of processes that became our children when their parent died, so that none stays a zombie. */
function reapAdopted(bystanders: Bystanders, guards: ReadonlySet<number>): void {
  for (const info of bystanders.without()) {
    if (info.ppid === process.pid && info.state === "Z" && !guards.has(info.pid)) reap(info.pid);
  }
}
