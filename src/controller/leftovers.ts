/**
 * Shared memory that DeepSpeed's processes leave when they are killed: tens of MiB a run, which would fill /dev/shm
 * (https://github.com/deepspeedai/DeepSpeed, csrc/cpu/comm/shm.cpp: removed only by an orderly end).
 */
import { readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";

const SHARED_MEMORY = "/dev/shm";
const OF_DEEPSPEED = /^deepspeed_/;

/**
 * Removes what this user's processes made there since `sinceMs` (as Date.now()) and no process maps any more.
 *
 * @returns the names of what was removed
 */
export function removeLeftSharedMemory(sinceMs: number, folder = SHARED_MEMORY): string[] {
  const left = leftSharedMemory(folder, OF_DEEPSPEED, sinceMs);
  for (const name of left) rmSync(join(folder, name), { force: true });
  return left;
}

/** Names of this user's files there that match, were made since `sinceMs`, and that no process maps. */
export function leftSharedMemory(folder: string, names: RegExp, sinceMs = 0): string[] {
  const candidates = list(folder).filter((name) => {
    const status = names.test(name) ? statSync(join(folder, name), { throwIfNoEntry: false }) : undefined;
    return status?.isFile() === true && status.uid === process.getuid?.() && status.ctimeMs >= sinceMs;
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
