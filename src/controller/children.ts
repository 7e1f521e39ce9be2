/**
 * Engines and the command as child processes. Each runs under baton-guard, which ends everything below it when the
 * controller is gone, and in a session of its own, so that a terminal's Ctrl-C reaches only the controller.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { BatonError } from "../errors.js";
import { descendants, type ProcessInfo, processInfo } from "../native.js";
import type { ProcessExit } from "../phases/events.js";

export interface ChildOptions {
  /** For reports: "launcher", "engine 0". */
  readonly name: string;
  readonly command: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  readonly guardPath: string;
  readonly controller: { readonly pid: number; readonly startTime: bigint };
  /** How long the controller may be stopped (SIGSTOP) before the guard ends the child. */
  readonly stoppedDeadlineMs: number;
  /** Absolute paths of what the guard removes when the controller is gone. */
  readonly remove: readonly string[];
  /** Files of this prefix that the child's processes map are noted in `record`, and removed with the others. */
  readonly sharedMemory: { readonly prefix: string; readonly record: string } | null;
  /** Where its output goes; null: to the controller's own standard output and error. */
  readonly logPath: string | null;
}

/** A guard with its command below it. */
export interface Child {
  readonly name: string;
  /** Process id of the guard. */
  readonly pid: number;
  readonly logPath: string | null;
  /** null while it runs. */
  readonly exit: ProcessExit | null;
  /**
   * Whether the command itself is known to have ended. Its guard may live on for a moment: it ends what the command
   * left, and only then itself.
   */
  commandEnded(): boolean;
  /** Resolves once, when the guard has ended. */
  readonly ended: Promise<ProcessExit>;
  /** false when it is gone already. */
  signal(signal: NodeJS.Signals): boolean;
}

/**
 * Starts a child.
 *
 * @throws BatonError CHILD_NOT_STARTED when the guard cannot be run
 */
export async function startChild(options: ChildOptions): Promise<Child> {
  const log = options.logPath === null ? null : openSync(options.logPath, "a", 0o644);
  const output = log ?? "inherit";
  const child = spawn(options.guardPath, [...guardOptions(options), "--", ...options.command], {
    env: options.environment,
    stdio: ["ignore", output, output],
    detached: true,
  });
  if (log !== null) closeSync(log);
  // Listened for from the start: a child may have ended before `spawn` is announced.
  const watched = watch(options, child);
  try {
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", reject);
    });
  } catch (error) {
    throw new BatonError(
      {
        code: "CHILD_NOT_STARTED",
        message: `The ${options.name} could not be started: ${(error as Error).message}`,
        expected: `a program at ${options.guardPath}`,
        found: (error as NodeJS.ErrnoException).code ?? "",
        action: "Run `npm run build` (in a checkout) or install gpu-baton again.",
      },
      { cause: error },
    );
  }
  return watched;
}

function guardOptions({ controller, stoppedDeadlineMs, remove, sharedMemory }: ChildOptions): string[] {
  return [
    ...["--parent", String(controller.pid), "--parent-start", String(controller.startTime)],
    ...["--stopped-deadline-ms", String(stoppedDeadlineMs)],
    ...(sharedMemory === null ? [] : ["--shared-memory", sharedMemory.prefix, "--record", sharedMemory.record]),
    ...remove.flatMap((path) => ["--remove", path]),
  ];
}

function watch(options: ChildOptions, child: ChildProcess): Child {
  let exit: ProcessExit | null = null;
  let command: ProcessInfo | null = null;
  child.once("spawn", () => {
    void findCommand(child.pid ?? -1).then((found) => {
      command = found;
    });
  });
  const ended = new Promise<ProcessExit>((resolve) => {
    child.once("exit", (code, signal) => {
      exit = { code, signal };
      resolve(exit);
    });
  });
  return {
    name: options.name,
    get pid() {
      return child.pid ?? -1;
    },
    logPath: options.logPath,
    get exit() {
      return exit;
    },
    commandEnded: () => exit !== null || (command !== null && hasEnded(command)),
    ended,
    signal: (signal) => exit === null && child.kill(signal),
  };
}

/** A guard forks as soon as it runs; what loses its parent becomes its child only later. */
const FORK_MS = { poll: 10, most: 2_000 };

/** The process of a guard's command; null when it came and went unseen. */
async function findCommand(guard: number): Promise<ProcessInfo | null> {
  const end = performance.now() + FORK_MS.most;
  while (performance.now() < end && processInfo(guard) !== null) {
    const command = descendants(guard).find(({ ppid }) => ppid === guard);
    if (command !== undefined) return command;
    await sleep(FORK_MS.poll, undefined, { ref: false });
  }
  return null;
}

/** Also of one that the kernel is still taking apart. */
function hasEnded({ pid, startTime }: ProcessInfo): boolean {
  const now = processInfo(pid);
  return now === null || now.startTime !== startTime || now.ending || now.state === "Z" || now.state === "X";
}
