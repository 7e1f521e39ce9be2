/** Reads what the kernel tells of this host. Nothing here waits, but for one connection to this machine. */
import { accessSync, constants, existsSync, readFileSync, readlinkSync, statfsSync } from "node:fs";
import { createConnection } from "node:net";
import { release } from "node:os";
import { socketParent } from "../controller/folders.js";
import { leftSharedMemory } from "../controller/leftovers.js";
import { toBatonError } from "../errors.js";
import { openPidfd } from "../native.js";
import { readCgroups } from "./cgroups.js";
import type { HostFacts, Limit } from "./facts.js";

const SHARED_MEMORY = "/dev/shm";
const CONNECT_MS = 1_000;
/** The kernel's own numbers of the first namespaces (include/linux/proc_ns.h). */
const FIRST_NAMESPACE = { pid: 0xeffffffc, ipc: 0xefffffff } as const;

export async function collectHost(environment: NodeJS.ProcessEnv): Promise<HostFacts> {
  const limits = read("/proc/self/limits") ?? "";
  return {
    environment,
    memory: parseMemory(read("/proc/meminfo")),
    limits: {
      lockedBytes: parseLimit(limits, "Max locked memory"),
      openFiles: parseLimit(limits, "Max open files"),
      addressSpaceBytes: parseLimit(limits, "Max address space"),
    },
    cgroups: readCgroups(read("/proc/self/cgroup") ?? "", read("/proc/self/mountinfo") ?? "", read),
    sharedMemory: sharedMemory(),
    overcommit: wholeNumber(read("/proc/sys/vm/overcommit_memory")),
    kernel: release(),
    pidfdError: pidfdError(),
    firstPidNamespace: isFirst("pid"),
    firstIpcNamespace: isFirst("ipc"),
    deviceFile: existsSync("/dev/nvidiactl"),
    socketParent: socketParent(environment),
    masterPortTaken: await portTaken(environment.MASTER_PORT),
  };
}

export function read(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/** `MemTotal` and `MemAvailable` of /proc/meminfo, in bytes. */
export function parseMemory(text: string | null): HostFacts["memory"] {
  const value = (name: string): number | null => {
    const match = new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text ?? "");
    return match === null ? null : Number(match[1]) * 1024;
  };
  const totalBytes = value("MemTotal");
  const availableBytes = value("MemAvailable");
  return totalBytes === null || availableBytes === null ? null : { totalBytes, availableBytes };
}

/** The soft limit of a line of /proc/self/limits. */
export function parseLimit(text: string, name: string): Limit {
  const match = new RegExp(`^${name}\\s+(unlimited|\\d+)`, "m").exec(text);
  if (match === null) return null;
  return match[1] === "unlimited" ? "unlimited" : Number(match[1]);
}

function wholeNumber(text: string | null): number | null {
  return text !== null && /^\d+\s*$/.test(text) ? Number(text) : null;
}

function sharedMemory(): HostFacts["sharedMemory"] {
  try {
    accessSync(SHARED_MEMORY, constants.W_OK);
    const { bsize, blocks, bavail } = statfsSync(SHARED_MEMORY);
    return {
      totalBytes: bsize * blocks,
      freeBytes: bsize * bavail,
      left: leftSharedMemory(SHARED_MEMORY, /^(deepspeed_|baton-.*\.standin$)/),
    };
  } catch {
    return null;
  }
}

function pidfdError(): HostFacts["pidfdError"] {
  try {
    openPidfd(process.pid).close();
    return null;
  } catch (error) {
    return toBatonError(error).toFields();
  }
}

function isFirst(kind: keyof typeof FIRST_NAMESPACE): boolean | null {
  try {
    const number = /\[(\d+)\]/.exec(readlinkSync(`/proc/self/ns/${kind}`))?.[1];
    return number === undefined ? null : Number(number) === FIRST_NAMESPACE[kind];
  } catch {
    return null;
  }
}

/** Whether somebody listens on this port of this machine; null: not a port, or no answer. */
function portTaken(text: string | undefined): Promise<boolean | null> {
  const port = Number(text);
  if (text === undefined || !Number.isInteger(port) || port < 1 || port > 65_535) return Promise.resolve(null);
  return new Promise((resolve) => {
    const socket = createConnection({ port, host: "127.0.0.1", timeout: CONNECT_MS });
    const end = (taken: boolean | null): void => {
      socket.destroy();
      resolve(taken);
    };
    socket.once("connect", () => end(true));
    socket.once("timeout", () => end(null));
    socket.once("error", (error: NodeJS.ErrnoException) => end(error.code === "ECONNREFUSED" ? false : null));
  });
}
