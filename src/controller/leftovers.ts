/** Shared memory that processes left when they were killed, as far as one can tell by looking. For reports only. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

/**
 * Names of this user's files there that match and that no process maps which can be seen from here. Processes of other
 * containers cannot: what is listed may be theirs.
 */
export function leftSharedMemory(folder: string, names: RegExp): string[] {
  const candidates = list(folder).filter((name) => {
    const status = names.test(name) ? statSync(join(folder, name), { throwIfNoEntry: false }) : undefined;
    return status?.isFile() === true && status.uid === process.getuid?.();
  });
  if (candidates.length === 0) return [];
  const mapped = list("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(mapsOf)
    .join("");
  return candidates.filter((name) => !mapped.includes(join(folder, name)));
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Empty for a process that is gone, or another user's. */
function mapsOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/maps`, "utf8");
  } catch {
    return "";
  }
}
