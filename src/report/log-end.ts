/** The end of a process's log, for the error that it ended with. */
import { closeSync, openSync, readSync, statSync } from "node:fs";

const BYTES = 64 * 1024;

/**
 * What torch.distributed's launcher says when a rank has ended badly. What follows it, 30 lines of its own traceback and
 * a table, says less than the rank's last lines before it do, and would push them out of sight. accelerate starts its
 * ranks through the same launcher.
 */
const LAUNCHER_SAW_A_FAILURE = /torch\/distributed\/elastic\/\S+\] failed \(exitcode: /;

/** The last lines of a log that say why it ended; empty when there is no log, or nothing in it. */
export function endOfLog(path: string | null, lines: number): string[] {
  if (path === null) return [];
  const all = readEnd(path);
  const failure = all.findLastIndex((line) => LAUNCHER_SAW_A_FAILURE.test(line));
  return (failure < 0 ? all : all.slice(0, failure + 1)).slice(-lines);
}

function readEnd(path: string): string[] {
  const bytes = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  if (bytes === 0) return [];
  const wanted = Math.min(bytes, BYTES);
  const buffer = Buffer.alloc(wanted);
  const file = openSync(path, "r");
  try {
    const read = readSync(file, buffer, 0, wanted, bytes - wanted);
    return buffer.toString("utf8", 0, read).trimEnd().split("\n");
  } finally {
    closeSync(file);
  }
}
