/** A lock file that a dead process does not hold: it names its holder by process id and start time. */
import { linkSync, readFileSync, renameSync, unlinkSync, writeFileSync } from "node:fs";

/** Thrown by `takeLock` when a living process has it. */
export class LockHeld extends Error {
  constructor(
    readonly path: string,
    readonly pid: number,
  ) {
    super(`process ${pid} holds ${path}`);
  }
}

export interface Lock {
  release(): void;
}

interface Holder {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: tells a process from a later one with the same id. */
  readonly startTime: string;
}

/** @throws LockHeld when a living process has it; the errors of the file system */
export function takeLock(path: string): Lock {
  const holder: Holder = { pid: process.pid, startTime: startTimeOf(process.pid) ?? "" };
  const mine = `${JSON.stringify(holder)}\n`;
  // A link shows the whole text at once; a file that is created and then written could be read half.
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, mine);
  try {
    while (!linked(draft, path)) dropStale(path);
  } finally {
    unlinkSync(draft);
  }
  return {
    release: () => {
      if (readIfThere(path) === mine) unlinkSync(path);
    },
  };
}

/** The living process that has the lock, or null. */
export function lockHolder(path: string): number | null {
  const text = readIfThere(path);
  return text === null ? null : livingHolder(text);
}

function livingHolder(text: string): number | null {
  const holder = parseHolder(text);
  return holder !== null && startTimeOf(holder.pid) === holder.startTime ? holder.pid : null;
}

function linked(draft: string, path: string): boolean {
  try {
    linkSync(draft, path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** Takes the lock of a dead process away. @throws LockHeld when it lives */
function dropStale(path: string): void {
  const text = readIfThere(path);
  if (text === null) return;
  const pid = livingHolder(text);
  if (pid !== null) throw new LockHeld(path, pid);
  // Moved aside before it is dropped: of two processes that both saw it stale, only one moves this very text.
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if (readFileSync(aside, "utf8") !== text) linked(aside, path);
  unlinkSync(aside);
}

function readIfThere(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

function parseHolder(text: string): Holder | null {
  try {
    const value = JSON.parse(text) as Partial<Holder>;
    return typeof value.pid === "number" && typeof value.startTime === "string" ? (value as Holder) : null;
  } catch {
    return null;
  }
}

/** null when there is no such process, or only what is left of it (a zombie). Works without the native addon. */
function startTimeOf(pid: number): string | null {
  const stat = readIfThere(`/proc/${pid}/stat`);
  if (stat === null) return null;
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" || fields[0] === "X" ? null : (fields[22 - 3] ?? null);
}
