/** How a process ended, as far as the kernel still knows. */
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import type { ProcessExit } from "../phases/events.js";

const UNKNOWN: ProcessExit = { code: null, signal: null };

/**
 * The end of a process that is not our child: read from /proc while it is a zombie. Unknown once its parent has
 * waited for it, so ask at once.
 */
export function exitOf(pid: number): ProcessExit {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch {
    return UNKNOWN;
  }
  // The command in parentheses may contain anything, so count from its end: state is field 3, exit_code field 52.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const status = Number(fields[52 - 3]);
  return fields[0] === "Z" && Number.isInteger(status) ? decodeWaitStatus(status) : UNKNOWN;
}

/** A status as wait(2) gives it. */
export function decodeWaitStatus(status: number): ProcessExit {
  const signal = status & 0x7f;
  return signal === 0 ? { code: (status >> 8) & 0xff, signal: null } : { code: null, signal: signalName(signal) };
}

function signalName(number: number): string {
  const found = Object.entries(constants.signals).find(([, value]) => value === number);
  return found?.[0] ?? `signal ${number}`;
}
