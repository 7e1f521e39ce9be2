/**
 * The end of a run: everybody is told, then asked, then made to end; and then it is checked that nothing is left.
 * After a failure all of this takes less than three seconds, whatever state the processes are in.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { monotonicNs, type Nvml } from "../native.js";
import type { Failure } from "../protocol/messages.js";
import type { Child } from "./children.js";
import { type Bystanders, killDescendants, livingDescendants, waitForDescendants } from "./ending.js";
import type { Server } from "./server.js";

/** After a failure: how long processes may take by themselves, and after SIGTERM, and how long killing may take. */
const FAILED_GRACE_MS = 500;
const FAILED_TERM_MS = 500;
const KILL_MS = 1_500;
/** NVML shows memory that was given back within microseconds; a driver may need a moment after a SIGKILL. */
const MEMORY_GONE_MS = 1_000;

export interface StopOptions {
  readonly failure: Failure | null;
  /** The run ended in order: processes get `stopMs` to end by themselves. */
  readonly orderly: boolean;
  readonly stopMs: number;
  readonly server: Pick<Server, "broadcast">;
  readonly children: readonly Child[];
  readonly bystanders: Bystanders;
  /** Aborted when nobody wants to wait any longer (a second Ctrl-C). */
  readonly hurry: AbortSignal;
}

/** Ends every process below this one. @returns how many are left (0, unless the kernel cannot end one) */
export async function stopEverything(options: StopOptions): Promise<number> {
  const { failure, children, server, bystanders, hurry } = options;
  const guards = new Set(children.map((child) => child.pid));
  server.broadcast({ type: "shutdown", failure });
  const graceMs = options.orderly ? options.stopMs : FAILED_GRACE_MS;
  if (!(await waitForDescendants(graceMs, bystanders, guards, hurry))) {
    for (const child of children) child.signal("SIGTERM");
    await waitForDescendants(FAILED_TERM_MS, bystanders, guards, hurry);
  }
  const left = await killDescendants(KILL_MS, bystanders, guards);
  // Node takes the exit status of the guards in its own time.
  await Promise.race([Promise.all(children.map((child) => child.ended)), sleep(200)]);
  return left.length === 0 ? livingDescendants(bystanders).length : left.length;
}

/**
 * Device memory that processes of the run still hold, by GPU, once there is none or time is up.
 *
 * @param isOurs tells a process of the run
 */
export async function leftDeviceBytes(
  nvml: Pick<Nvml, "processes">,
  gpus: number,
  isOurs: (pid: number) => boolean,
): Promise<(number | null)[]> {
  const end = monotonicNs() + BigInt(MEMORY_GONE_MS) * 1_000_000n;
  for (;;) {
    const left = await Promise.all(Array.from({ length: gpus }, (_, gpu) => heldOn(nvml, gpu, isOurs)));
    if (left.every((bytes) => bytes === 0) || monotonicNs() > end) return left;
    await sleep(20);
  }
}

async function heldOn(
  nvml: Pick<Nvml, "processes">,
  gpu: number,
  isOurs: (pid: number) => boolean,
): Promise<number | null> {
  try {
    const ours = (await nvml.processes(gpu)).filter(({ pid }) => isOurs(pid));
    if (ours.some(({ usedBytes }) => usedBytes === null)) return null;
    return ours.reduce((sum, { usedBytes }) => sum + (usedBytes ?? 0), 0);
  } catch {
    return null;
  }
}
