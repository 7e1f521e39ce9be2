/** The end of a process's log, for the error that it ended with. */
import { closeSync, openSync, readSync, statSync } from "node:fs";

const BYTES = 64 * 1024;

/** A line of torch.distributed's launcher, which accelerate starts its ranks through too. */
const LAUNCHER = /torch\/distributed\/elastic\/\S+\] /;
/** What it says when a rank has ended badly, and when it was told to end. */
const SAW_A_FAILURE = /\] failed \(exitcode: /;
const WAS_TOLD_TO_END = /\] Received \d+ death signal/;

/** The last lines of a log that say why it ended; empty when there is no log, or nothing in it. */
export function endOfLog(path: string | null, lines: number): string[] {
  return path === null ? [] : withoutLaunchersEnd(readEnd(path)).slice(-lines);
}

/**
 * Without what the launcher says when it ends: 30 lines of its own traceback and a table say less than the rank's last
 * lines before them, and would push those out of sight. The line that names the rank stays.
 */
function withoutLaunchersEnd(lines: string[]): string[] {
  const ending = lines.findLastIndex(
    (line) => LAUNCHER.test(line) && (SAW_A_FAILURE.test(line) || WAS_TOLD_TO_END.test(line)),
  );
  if (ending < 0) return lines;
  let begin = ending;
  while (begin > 0 && LAUNCHER.test(lines[begin - 1] ?? "")) begin--;
  const failure = lines.slice(begin, ending + 1).filter((line) => SAW_A_FAILURE.test(line));
  return [...lines.slice(0, begin), ...failure];
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
