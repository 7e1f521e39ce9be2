/** Starts `baton` as a user would and says what became of it. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type RunEvent, readEvents } from "../../src/report/events.js";
import type { Summary } from "../../src/report/summary.js";

export const root = join(import.meta.dirname, "../..");
export const fixtures = join(root, "test/fixtures");

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly output: string;
  /** From its start. */
  readonly seconds: number;
}

/** A running baton with a folder of its own, in which it also writes. */
export class Baton {
  readonly process: ChildProcess;
  readonly ended: Promise<Ended>;
  /** Where it writes. */
  readonly out: string;
  #output = "";

  constructor(
    readonly folder: string,
    words: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    out = join(folder, "out"),
  ) {
    this.out = out;
    const began = performance.now();
    this.process = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...words], {
      cwd: root,
      env: { ...process.env, XDG_RUNTIME_DIR: folder, ...environment },
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream?.on("data", (data: Buffer) => {
        this.#output += data.toString();
      });
    }
    this.ended = new Promise((resolve) => {
      this.process.once("exit", (code, signal) => {
        resolve({ code, signal, output: this.#output, seconds: (performance.now() - began) / 1000 });
      });
    });
  }

  get pid(): number {
    return this.process.pid as number;
  }

  get output(): string {
    return this.#output;
  }

  events(): RunEvent[] {
    const path = join(this.out, "events.jsonl");
    return existsSync(path) ? readEvents(path) : [];
  }

  summary(): Summary {
    return JSON.parse(readFileSync(join(this.out, "summary.json"), "utf8")) as Summary;
  }

  /** The first event that `wanted` accepts, as soon as it is written. Throws when the run ends before. */
  async event(wanted: (event: RunEvent) => boolean, deadlineMs = 120_000): Promise<RunEvent> {
    const end = performance.now() + deadlineMs;
    let over = false;
    void this.ended.then(() => {
      over = true;
    });
    for (;;) {
      const found = this.events().find(wanted);
      if (found !== undefined) return found;
      if (over || performance.now() > end) throw new Error(`the event did not come; output:\n${this.#output}`);
      await sleep(2);
    }
  }

  /** Ends it in any case. */
  async dispose(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.ended;
  }
}

/** Runs `use` with a folder of its own, which is removed afterwards. */
export async function withFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "bt-"));
  try {
    return await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Processes that have `text` in their environment, other than this one. */
export function processesWith(text: string): number[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const stat = readFileSync(`/proc/${name}/stat`, "latin1");
      const state = stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3);
      if (state === "Z" || Number(name) === process.pid) return [];
      return readFileSync(`/proc/${name}/environ`, "latin1").includes(text) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}
