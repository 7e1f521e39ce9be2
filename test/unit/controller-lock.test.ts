import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { makeSocketFolder, takeRunFolder } from "../../src/controller/folders.js";
import { LockHeld, takeLock } from "../../src/controller/lock.js";
import { BatonError } from "../../src/errors.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-test-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const code = (action: () => unknown): string => {
  try {
    action();
  } catch (error) {
    return error instanceof BatonError ? error.code : String(error);
  }
  return "nothing thrown";
};

describe("a lock", () => {
  it("has one holder until it is released", () => {
    const path = join(folder, "lock");
    const lock = takeLock(path);
    expect(() => takeLock(path)).toThrow(LockHeld);
    lock.release();
    expect(existsSync(path)).toBe(false);
    takeLock(path).release();
    expect(readdirSync(folder)).toEqual([]);
  });

  it("of a process that is gone is taken over", async () => {
    const path = join(folder, "lock");
    const child = spawn("true");
    await new Promise((resolve) => child.once("exit", resolve));
    writeFileSync(path, `${JSON.stringify({ pid: child.pid, startTime: "1" })}\n`);
    takeLock(path).release();
  });

  it("of an id that another process has now is taken over", () => {
    const path = join(folder, "lock");
    writeFileSync(path, `${JSON.stringify({ pid: process.pid, startTime: "1" })}\n`);
    takeLock(path).release();
  });

  it("that was cut off while it was written is taken over", () => {
    const path = join(folder, "lock");
    writeFileSync(path, '{"pid": 1');
    takeLock(path).release();
  });

  it("goes to one of several processes that want it at once", async () => {
    const path = join(folder, "lock");
    writeFileSync(path, `${JSON.stringify({ pid: 2 ** 22 - 1, startTime: "1" })}\n`);
    const script = `
      import { takeLock } from ${JSON.stringify(join(process.cwd(), "src/controller/lock.ts"))};
      try { takeLock(process.argv[1]); process.stdout.write("got it\\n"); } catch { process.stdout.write("held\\n"); }
      setTimeout(() => {}, 2000);`;
    const answers = await Promise.all(
      Array.from({ length: 4 }, async () => {
        const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script, path]);
        child.stderr.on("data", (data: Buffer) => process.stderr.write(data));
        const answer = await new Promise<string>((resolve) => child.stdout.once("data", (data) => resolve(`${data}`)));
        return { child, answer };
      }),
    );
    for (const { child } of answers) child.kill();
    expect(answers.filter(({ answer }) => answer === "got it\n")).toHaveLength(1);
  });
});

describe("the folder of a run", () => {
  it("belongs to one run", () => {
    const first = takeRunFolder(join(folder, "out"));
    expect(code(() => takeRunFolder(join(folder, "out")))).toBe("RUN_FOLDER_IN_USE");
    first.release();
    takeRunFolder(join(folder, "out")).release();
  });

  it("sets the results of the run before aside when it is taken, and only then", () => {
    const out = join(folder, "out");
    mkdirSync(join(out, "logs"), { recursive: true });
    const results = ["events.jsonl", "summary.json", "summary.json.new", "trace.json", "logs/launcher.log"];
    for (const name of [...results, "notes.txt"]) writeFileSync(join(out, name), "of the run before");
    const first = takeRunFolder(out);
    expect(readdirSync(out).sort()).toEqual([".baton.lock", "earlier-1", "logs", "notes.txt"]);
    expect(readdirSync(join(out, "logs"))).toEqual([]);
    expect(readdirSync(join(out, "earlier-1")).sort()).toEqual(["events.jsonl", "logs", "summary.json", "trace.json"]);
    expect(readFileSync(join(out, "earlier-1/logs/launcher.log"), "utf8")).toBe("of the run before");
    writeFileSync(first.file("summary.json"), "of this run");
    expect(code(() => takeRunFolder(out))).toBe("RUN_FOLDER_IN_USE");
    expect(existsSync(first.file("summary.json"))).toBe(true);
    first.release();
    takeRunFolder(out).release();
    expect(readFileSync(join(out, "earlier-1/summary.json"), "utf8")).toBe("of the run before");
    expect(readFileSync(join(out, "earlier-2/summary.json"), "utf8")).toBe("of this run");
  });

  it("must be one", () => {
    writeFileSync(join(folder, "file"), "");
    expect(code(() => takeRunFolder(join(folder, "file")))).toBe("RUN_FOLDER_UNUSABLE");
  });
});

describe("the folder of the socket", () => {
  it("is in XDG_RUNTIME_DIR and only for this user", async () => {
    const { statSync } = await import("node:fs");
    const made = makeSocketFolder("run", { XDG_RUNTIME_DIR: folder });
    expect(made.socketPath.startsWith(folder)).toBe(true);
    expect(statSync(join(made.socketPath, "..")).mode & 0o777).toBe(0o700);
    made.remove();
    expect(readdirSync(folder)).toEqual([]);
  });

  it("has a path that fits into a socket address", () => {
    expect(code(() => makeSocketFolder("run", { TMPDIR: `/tmp/${"x".repeat(100)}` }))).toBe("SOCKET_PATH_TOO_LONG");
  });

  it("must be in a folder that is there", () => {
    expect(code(() => makeSocketFolder("run", { TMPDIR: join(folder, "nowhere") }))).toBe("SOCKET_FOLDER_UNUSABLE");
  });
});
