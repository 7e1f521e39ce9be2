/**
 * Whose a file outside DIR is. Folders for temporary files and /dev/shm are shared by runs, and by containers that see
 * each other's files but not each other's processes; so the name says which process of which process-id namespace of
 * which boot made it, and only what certainly lost its owner is removed.
 */
import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { processInfo } from "../native.js";

export interface Owner {
  /** The first 8 digits of the kernel's boot id. */
  readonly boot: string;
  /** Inode of the process-id namespace. Another may have it later, but not while a process of it lives. */
  readonly namespace: bigint;
  readonly pid: number;
  /** Field 22 of /proc/PID/stat. */
  readonly startTime: bigint;
}

const BASE = 36;
const NAME = /^baton-([0-9a-f]{8})-([0-9a-z]+)-([0-9a-z]+)-([0-9a-z]+)-[\w-]+(?:\.standin)?$/;
/** A name that nobody can be asked about: it is never swept. */
const UNKNOWN = "baton-00000000-0-0-0";
/** The file in the socket folder in which a guard notes the shared memory that the run's processes map. */
const RECORD = "shared-memory";

/** This process as an owner; null where the kernel does not tell. */
export function thisOwner(): Owner | null {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").slice(0, 8);
    const namespace = BigInt(/\d+/.exec(readlinkSync("/proc/self/ns/pid"))?.[0] ?? "");
    const startTime = processInfo(process.pid)?.startTime;
    if (startTime === undefined || !/^[0-9a-f]{8}$/.test(boot)) return null;
    return { boot, namespace, pid: process.pid, startTime };
  } catch {
    return null;
  }
}

/** A name for a file or folder of this process, for a run whose name no other has. */
export function ownedName(run: string, owner: Owner | null = thisOwner()): string {
  const who =
    owner === null
      ? UNKNOWN
      : ["baton", owner.boot, ...[owner.namespace, owner.pid, owner.startTime].map((n) => n.toString(BASE))].join("-");
  return `${who}-${run}`;
}

/** Who made a file of this name; null when the name is not one of Baton's. */
export function ownerOf(name: string): Owner | null {
  const [, boot, ...numbers] = NAME.exec(name) ?? [];
  if (boot === undefined) return null;
  const [namespace = 0n, pid = 0n, startTime = 0n] = numbers.map(parse);
  return { boot, namespace, pid: Number(pid), startTime };
}

function parse(digits: string): bigint {
  return [...digits].reduce((value, digit) => value * BigInt(BASE) + BigInt(Number.parseInt(digit, BASE)), 0n);
}

/** Whether the owner is certainly gone: one that could be seen from here, and is not there. */
function isGone(owner: Owner, self: Owner): boolean {
  if (owner.boot !== self.boot || owner.namespace !== self.namespace) return false;
  const found = processInfo(owner.pid);
  return found === null || found.startTime !== owner.startTime || found.state === "Z" || found.state === "X";
}

/**
 * Removes what runs left in these folders whose controller and guards were killed, and the shared memory that their
 * guards had noted.
 *
 * @returns the paths of what was removed
 */
export function sweep(folders: readonly string[]): string[] {
  const self = thisOwner();
  if (self === null) return [];
  const left = [...new Set(folders)].flatMap((folder) =>
    list(folder).flatMap((name) => {
      const owner = ownerOf(name);
      const path = join(folder, name);
      return owner !== null && isGone(owner, self) && isOwn(path) ? [path] : [];
    }),
  );
  return left.flatMap((path) => {
    const shared = removeSharedMemory(path);
    rmSync(path, { recursive: true, force: true });
    return [...shared, path];
  });
}

/**
 * Removes the shared memory that a guard noted in this folder, if it is still the same file.
 *
 * @returns the paths of what was removed
 */
export function removeSharedMemory(folder: string): string[] {
  const record = recordPath(folder);
  const lines = existsSync(record) ? readFileSync(record, "utf8").split("\n") : [];
  return lines.flatMap((line) => {
    const [, device, inode, path] = /^(\d+) (\d+) (\/.+)$/.exec(line) ?? [];
    if (path === undefined) return [];
    const status = statSync(path, { throwIfNoEntry: false, bigint: true });
    if (status === undefined || `${status.dev} ${status.ino}` !== `${device} ${inode}`) return [];
    rmSync(path, { force: true });
    return [path];
  });
}

/** Where a guard notes the shared memory that processes below it map. */
export function recordPath(socketFolder: string): string {
  return join(socketFolder, RECORD);
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function isOwn(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.uid === process.getuid?.();
}
