/** What the tests of the native addon share. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterEach } from "vitest";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

/** Runs when the test has ended, last ones first. */
export function atEnd(cleanup: () => void): void {
  cleanups.push(cleanup);
}

export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "baton-test-"));
  atEnd(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export const openDescriptors = (): number => readdirSync("/proc/self/fd").length;

/** Waits until it holds; throws after the deadline. */
export async function until(what: string, holds: () => boolean, deadlineMs = 10_000): Promise<void> {
  const end = performance.now() + deadlineMs;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not within ${deadlineMs} ms: ${what}`);
    await sleep(2);
  }
}

export interface Running {
  readonly process: ChildProcess;
  readonly pid: number;
  readonly output: () => string;
  readonly exit: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

/** A child that does not outlive its test. */
export function start(command: string, args: readonly string[]): Running {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  child.stdout.on("data", (data: Buffer) => {
    text += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    text += data.toString();
  });
  const exit = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ code, signal }));
  });
  atEnd(() => child.kill("SIGKILL"));
  if (child.pid === undefined) throw new Error(`${command} did not start`);
  return { process: child, pid: child.pid, output: () => text, exit };
}

/** The protocol spoken by Python, without any code of Baton. */
export const framesClient = (socket: string, ...args: string[]): Running =>
  start("python3", [fileURLToPath(new URL("../fixtures/frames_client.py", import.meta.url)), socket, ...args]);
