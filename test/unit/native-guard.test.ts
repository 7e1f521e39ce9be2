/** baton-guard: what is below it ends with the controller, however either ends. */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { guardPath, processInfo } from "../../src/native.js";
import { atEnd, type Running, start, temporaryFolder, until } from "./native-support.js";

const startTime = (pid: number): string => String(processInfo(pid)?.startTime);

/** A guard whose parent is this process. */
const guard = (options: string[], ...command: string[]): Running =>
  start(guardPath(), [
    ...["--parent", String(process.pid), "--parent-start", startTime(process.pid)],
    ...options,
    "--",
    ...command,
  ]);

/** Each process of a tree writes its id into a folder; sessions of their own, deaf to polite signals. */
function tree(folder: string): string {
  const script = join(folder, "tree.sh");
  const pids = join(folder, "pids");
  mkdirSync(pids);
  writeFileSync(
    script,
    `#!/bin/bash
here() { echo > ${pids}/$BASHPID; trap '' TERM INT HUP; }
here
setsid bash -c 'trap "" TERM INT HUP; echo > ${pids}/$$; (setsid bash -c "echo > ${pids}/\\$\\$; sleep 300" &) ; sleep 300' &
(here; while true; do sleep 0.05; done) &
sleep 300
`,
    { mode: 0o755 },
  );
  return script;
}

const TREE_SIZE = 4;
const pidsOf = (folder: string): number[] => readdirSync(join(folder, "pids")).map(Number);

const alive = (pid: number): boolean => !["Z", "X", undefined].includes(processInfo(pid)?.state);

describe("exit", () => {
  test.each([0, 1, 42, 255])("code %i is passed on", async (code) => {
    expect(await guard([], "sh", "-c", `exit ${code}`).exit).toEqual({ code, signal: null });
  });

  test.each(["SIGKILL", "SIGTERM", "SIGSEGV", "SIGUSR1"] as const)("%s is passed on", async (signal) => {
    const child = guard([], "sh", "-c", `kill -${signal.slice(3)} $$; sleep 5`);
    expect(await child.exit).toEqual({ code: null, signal });
  });

  test("a command that cannot run is 127 or 126", async () => {
    const missing = guard([], "no-such-command");
    expect((await missing.exit).code).toBe(127);
    expect(missing.output()).toContain("cannot run no-such-command");
    expect((await guard([], "/tmp").exit).code).toBe(126);
  });

  test("what the command leaves behind is ended", async () => {
    const folder = temporaryFolder();
    const script = tree(folder);
    const child = guard([], "bash", "-c", `setsid ${script} & sleep 0.5; exit 5`);
    await until("the tree is there", () => pidsOf(folder).length === TREE_SIZE);
    expect((await child.exit).code).toBe(5);
    expect(pidsOf(folder).filter(alive)).toEqual([]);
  });
});

describe("signals", () => {
  test.each(["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"] as const)("%s reaches the command", async (signal) => {
    const child = guard(
      [],
      "bash",
      "-c",
      `trap 'exit 9' ${signal.slice(3)}; echo ready; while true; do sleep 0.05; done`,
    );
    await until("it runs", () => child.output().includes("ready"));
    child.process.kill(signal);
    expect(await child.exit).toEqual({ code: 9, signal: null });
  });

  test("a command that ignores the request to end is killed after the grace", async () => {
    const folder = temporaryFolder();
    const child = guard(["--grace-ms", "300"], tree(folder));
    await until("the tree is there", () => pidsOf(folder).length === TREE_SIZE);
    const started = performance.now();
    child.process.kill("SIGTERM");
    expect(await child.exit).toEqual({ code: null, signal: "SIGKILL" });
    expect(performance.now() - started).toBeGreaterThan(250);
    expect(pidsOf(folder).filter(alive)).toEqual([]);
  });
});

describe("the controller", () => {
  /** A stand-in for the controller: a shell that starts a guard with a tree below it. */
  async function controlled(options: string): Promise<{ folder: string; parent: Running }> {
    const folder = temporaryFolder();
    const script = tree(folder);
    const parent = start("bash", [
      "-c",
      `start=$(cut -d' ' -f22 /proc/$$/stat); ${guardPath()} --parent $$ --parent-start $start ${options} -- ${script} &
       echo $! > ${folder}/guard; while true; do sleep 0.05; done`,
    ]);
    await until("the tree is there", () => pidsOf(folder).length === TREE_SIZE);
    const pids = [...pidsOf(folder), Number(readFileSync(join(folder, "guard"), "utf8"))];
    atEnd(() => {
      for (const pid of pids) if (alive(pid)) process.kill(pid, "SIGKILL");
    });
    return { folder, parent };
  }
  const all = (folder: string): number[] => [...pidsOf(folder), Number(readFileSync(join(folder, "guard"), "utf8"))];

  test("killed: everything is gone within a second", async () => {
    const { folder, parent } = await controlled("");
    const pids = all(folder);
    expect(pids.every(alive)).toBe(true);
    parent.process.kill("SIGKILL");
    await until("all are gone", () => !pids.some(alive), 1000);
  });

  test("stopped beyond the deadline: everything is gone; within it nothing is", async () => {
    const { folder, parent } = await controlled("--stopped-deadline-ms 600");
    const pids = all(folder);
    parent.process.kill("SIGSTOP");
    await sleep(200);
    expect(pids.every(alive)).toBe(true);
    // A short stop is forgiven, and forgotten.
    parent.process.kill("SIGCONT");
    await sleep(700);
    expect(pids.every(alive)).toBe(true);
    parent.process.kill("SIGSTOP");
    await sleep(300);
    expect(pids.every(alive)).toBe(true);
    await until("all are gone", () => !pids.some(alive), 2500);
  });

  test("stopped without a deadline: nothing happens", async () => {
    const { folder, parent } = await controlled("");
    parent.process.kill("SIGSTOP");
    await sleep(500);
    expect(all(folder).every(alive)).toBe(true);
  });

  test("another process with its id is not it: nothing is started", async () => {
    const folder = temporaryFolder();
    const child = start(guardPath(), ["--parent", String(process.pid), "--parent-start", "1", "--", tree(folder)]);
    expect((await child.exit).code).toBe(137);
    expect(pidsOf(folder)).toEqual([]);
  });
});

describe("what a run leaves in the file system", () => {
  /** Maps the files that it is given. */
  const MAP = `
import mmap, sys, time
files = [open(path, "r+b") for path in sys.argv[1:]]
maps = [mmap.mmap(file.fileno(), 4096) for file in files]
print("mapped", flush=True)
time.sleep(300)`;

  /** A shell as the controller of a guard, which maps `mine`; `others` are files of others with the same prefix. */
  async function controlled(): Promise<{ parent: Running; path: (name: string) => string }> {
    const folder = temporaryFolder();
    const path = (name: string): string => join(folder, name);
    mkdirSync(path("socket-folder"));
    for (const name of ["socket-folder/socket", "table", "other"]) writeFileSync(path(name), "");
    for (const name of ["shm_mine", "shm_others"]) writeFileSync(path(name), Buffer.alloc(4096));
    writeFileSync(path("map.py"), MAP);
    const options = ["--remove", path("socket-folder"), "--remove", path("table"), "--remove", path("never-made")];
    options.push("--shared-memory", path("shm_"), "--record", path("record"), "--stopped-deadline-ms", "300");
    const parent = start("bash", [
      "-c",
      `start=$(cut -d' ' -f22 /proc/$$/stat); ${guardPath()} --parent $$ --parent-start $start ${options.join(" ")} -- \
       setsid python3 ${path("map.py")} ${path("shm_mine")} & echo $! > ${path("guard")}; wait`,
    ]);
    atEnd(() => {
      const pid = Number(readFileSync(path("guard"), "utf8"));
      if (alive(pid)) process.kill(pid, "SIGKILL");
    });
    await until("it is mapped", () => parent.output().includes("mapped"));
    // It is made, and then written.
    await until("it is noted", () => (statSync(path("record"), { throwIfNoEntry: false })?.size ?? 0) > 0);
    return { parent, path };
  }

  const REMOVED = ["socket-folder", "table", "shm_mine"];
  const KEPT = ["other", "shm_others"];

  test.each(["SIGKILL", "SIGSTOP"] as const)(
    "goes when the controller gets %s; files of others stay",
    async (signal) => {
      const { parent, path } = await controlled();
      const { dev, ino } = statSync(path("shm_mine"));
      expect(readFileSync(path("record"), "utf8")).toBe(`${dev} ${ino} ${path("shm_mine")}\n`);
      parent.process.kill(signal);
      await until("it is gone", () => !REMOVED.some((name) => existsSync(path(name))), 3000);
      for (const name of KEPT) expect(existsSync(path(name)), name).toBe(true);
    },
  );

  test("stays with a controller that is there: it may want to look", async () => {
    const { parent, path } = await controlled();
    process.kill(Number(readFileSync(path("guard"), "utf8")), "SIGTERM");
    await parent.exit;
    for (const name of [...REMOVED, ...KEPT]) expect(existsSync(path(name)), name).toBe(true);
  });
});

test.each([
  [[]],
  [["--parent", "1"]],
  [["--parent", "x", "--parent-start", "1", "--", "true"]],
  [["--parent", "1", "--parent-start", "1"]],
  [["--parent", "1", "--parent-start", "1", "--"]],
  [["--unknown", "1", "--", "true"]],
  [["--parent", "1", "--parent-start", "1", "--remove", "relative", "--", "true"]],
  [["--parent", "1", "--parent-start", "1", "--remove", "/", "--", "true"]],
])("a wrong command line %j is told", async (args) => {
  const child = start(guardPath(), args);
  expect((await child.exit).code).toBe(125);
  expect(child.output()).toContain("usage: baton-guard");
});
