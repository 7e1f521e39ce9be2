/** What killed processes leave in shared memory. */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { removeLeftSharedMemory } from "../../src/controller/leftovers.js";

const MAP = `
import mmap, sys, time
file = open(sys.argv[1], "r+b")
memory = mmap.mmap(file.fileno(), 4096)
time.sleep(600)`;

it("removes DeepSpeed's shared memory of this run that nobody maps, and nothing else", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bt-"));
  const paths = ["deepspeed_left", "deepspeed_mapped", "other"].map((name) => join(folder, name));
  const [left, mapped, other] = paths as [string, string, string];
  for (const path of paths) writeFileSync(path, Buffer.alloc(4096));
  const began = Date.now() - 60_000;
  const child = spawn("python3", ["-c", MAP, mapped], { stdio: "ignore" });
  try {
    while (!readFileSync(`/proc/${child.pid}/maps`, "utf8").includes(mapped)) await sleep(20);
    // Not older than the run: another run's.
    expect(removeLeftSharedMemory(Date.now() + 1_000, folder)).toEqual([]);
    expect(removeLeftSharedMemory(began, folder)).toEqual(["deepspeed_left"]);
    expect([left, mapped, other].map((path) => existsSync(path))).toEqual([false, true, true]);
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("exit", resolve));
    expect(removeLeftSharedMemory(began, folder)).toEqual(["deepspeed_mapped"]);
  } finally {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
  // Where there is no such folder there is nothing left.
  expect(removeLeftSharedMemory(began, folder)).toEqual([]);
});
