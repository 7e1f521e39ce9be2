import { fstatSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { BatonError } from "../../src/errors.js";
import {
  becomeSubreaper,
  closeDescriptor,
  descendants,
  duplicate,
  memfd,
  monotonicNs,
  openPidfd,
  processInfo,
  reap,
} from "../../src/native.js";
import { atEnd, openDescriptors, start, until } from "./native-support.js";

describe("processes", () => {
  test("are what /proc says", () => {
    const own = processInfo(process.pid);
    expect(own).toMatchObject({ pid: process.pid, ppid: process.ppid });
    const stat = readFileSync("/proc/self/stat", "utf8");
    expect(own?.startTime).toBe(BigInt(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? ""));
    expect(processInfo(2 ** 22)).toBeNull();
  });

  test("a stopped one is seen, and its end once", async () => {
    const child = start("sleep", ["60"]);
    const pidfd = openPidfd(child.pid);
    atEnd(() => pidfd.close());
    expect(pidfd.startTime).toBe(processInfo(child.pid)?.startTime);
    expect(pidfd.signal(19)).toBe(true);
    await until("it stops", () => processInfo(child.pid)?.state === "T");
    let exits = 0;
    pidfd.onExit = () => {
      exits += 1;
    };
    pidfd.signal(9);
    await child.exit;
    await sleep(20);
    expect(exits).toBe(1);
    expect(pidfd.signal(9)).toBe(false);
    expect(() => openPidfd(child.pid)).toThrow(BatonError);
  });

  test("an end before onExit was set is told", async () => {
    const child = start("true", []);
    const pidfd = openPidfd(child.pid);
    atEnd(() => pidfd.close());
    await child.exit;
    await sleep(10);
    let told = false;
    pidfd.onExit = () => {
      told = true;
    };
    await until("it is told", () => told);
  });

  test("descendants are found across sessions; adopted ones are reaped with their status", async () => {
    becomeSubreaper();
    const shell = start("bash", ["-c", "setsid bash -c 'sleep 2; exit 23' & sleep 1"]);
    let orphan = -1;
    await until("all are there", () => {
      const below = descendants(shell.pid);
      // Not `setsid`, which becomes the second bash.
      orphan = below.find((info) => info.command === "bash")?.pid ?? -1;
      return below.length >= 3 && orphan > 0;
    });
    expect(reap(orphan)).toBeNull();
    await shell.exit;
    await until("it is adopted", () => processInfo(orphan)?.ppid === process.pid);
    expect(descendants(process.pid).map((info) => info.pid)).toContain(orphan);
    let status: number | null = null;
    await until("it ends", () => {
      status = reap(orphan);
      return status !== null;
    });
    expect(status).toBe(23);
    expect(processInfo(orphan)).toBeNull();
    expect(reap(1)).toBeNull();
  });

  test("ids that cannot be are errors", () => {
    for (const pid of [0, -1, 1.5, Number.NaN, 2 ** 31]) expect(() => openPidfd(pid)).toThrow(/pid/);
    expect(() => openPidfd(2 ** 22)).toThrow(/no process/);
  });
});

describe("descriptors", () => {
  test("a memory file has its size, is closed on exec, and takes no memory", () => {
    const before = openDescriptors();
    const memory = memfd("test file", 2 ** 40);
    expect(fstatSync(memory)).toMatchObject({ size: 2 ** 40, blocks: 0 });
    expect(readlinkSync(`/proc/self/fd/${memory}`)).toContain("memfd:test file");
    expect(readFileSync(`/proc/self/fdinfo/${memory}`, "utf8")).toMatch(/flags:\s+0?2\d{6}/);
    const second = duplicate(memory);
    expect(fstatSync(second).ino).toBe(fstatSync(memory).ino);
    expect(readFileSync(`/proc/self/fdinfo/${second}`, "utf8")).toMatch(/flags:\s+0?2\d{6}/);
    closeDescriptor(memory);
    closeDescriptor(second);
    expect(openDescriptors()).toBe(before);
    expect(() => closeDescriptor(memory)).toThrow(expect.objectContaining({ code: "SYSTEM_EBADF" }));
    expect(() => duplicate(memory)).toThrow(expect.objectContaining({ code: "SYSTEM_EBADF" }));
    expect(() => memfd("x", -1)).toThrow(expect.objectContaining({ code: "BAD_ARGUMENT" }));
    expect(() => memfd("x".repeat(300), 1)).toThrow(expect.objectContaining({ code: "SYSTEM_EINVAL" }));
  });
});

test("the clock is the one of process.hrtime", () => {
  const before = process.hrtime.bigint();
  const now = monotonicNs();
  expect(now).toBeGreaterThanOrEqual(before);
  expect(now).toBeLessThanOrEqual(process.hrtime.bigint());
});

test("errors are Baton's own class, thrown where the caller is", () => {
  try {
    openPidfd(2 ** 22);
  } catch (error) {
    expect(error).toBeInstanceOf(BatonError);
    expect((error as BatonError).stack).toContain("native-processes.test");
    expect((error as BatonError).toFields()).toMatchObject({ code: "PROCESS_NOT_FOUND", expected: "a process" });
    return;
  }
  expect.fail("nothing was thrown");
});
