import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { findOnPath } from "../../src/cli/python.js";
import { callModule, textOfModule } from "../../src/cli/python-module.js";

const python = findOnPath("python3", process.env) as string;
let folder: string;
let said: string[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-test-"));
  said = [];
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A module of this text, called as the trainer's preflight is. */
function call(text: string, deadlineMs = 15_000, input: unknown = { a: 1 }) {
  writeFileSync(join(folder, "answering.py"), `import json, os, subprocess, sys, time\n${text}`);
  return {
    python,
    module: "answering",
    args: ["--ranks", "2"],
    input,
    deadlineMs,
    environment: { ...process.env, PYTHONPATH: folder },
    say: (line: string) => said.push(line),
  };
}

describe("a module of Python", () => {
  it("answers with its last line; what it warns of is said", async () => {
    const text = `
print("a banner of something that is imported")
print("baton: careful", file=sys.stderr)
print(json.dumps({"args": sys.argv[1:], "input": json.load(sys.stdin)}))
`;
    expect(await callModule(call(text))).toEqual({ args: ["--ranks", "2"], input: { a: 1 } });
    expect(said).toEqual(["baton: careful"]);
  });

  it("refuses with an error, which keeps its fields", async () => {
    const error = { code: "DATA_EMPTY", message: "None.", expected: "some", found: "0", action: "Add some." };
    const text = `print('''${JSON.stringify({ error })}''')\nsys.exit(1)`;
    await expect(callModule(call(text))).rejects.toMatchObject(error);
  });

  it("that crashes shows its last words, once", async () => {
    await expect(callModule(call(`raise ZeroDivisionError("of its own")`))).rejects.toMatchObject({
      code: "PREFLIGHT_FAILED",
      found: expect.stringMatching(/^exit 1\n {4}Traceback[\s\S]*ZeroDivisionError: of its own$/),
    });
    expect(said).toEqual([]);
    await expect(callModule(call("os.abort()"))).rejects.toMatchObject({ found: "exit SIGABRT" });
    await expect(callModule(call("print('no json')"))).rejects.toMatchObject({ code: "PREFLIGHT_FAILED" });
    // An error of something else than its answer is a crash too.
    await expect(callModule(call(`print('{"error": 1}')\nsys.exit(1)`))).rejects.toMatchObject({
      code: "PREFLIGHT_FAILED",
    });
  });

  it("says a traceback that it only warns of", async () => {
    const text = `print("Traceback (most recent call last):\\n  x", file=sys.stderr)\nprint("{}")`;
    expect(await callModule(call(text))).toEqual({});
    expect(said).toEqual(["Traceback (most recent call last):", "  x"]);
  });

  it("that need not read its input is not waited for, nor is what it has left behind", async () => {
    const text = `
child = subprocess.Popen(["sleep", "1000"])
open("${join(folder, "pid")}", "w").write(str(child.pid))
print("{}")
`;
    expect(await callModule(call(text, 15_000, "x".repeat(1_000_000)))).toEqual({});
    await expectGone();
  });

  it("that hangs is killed at its deadline, with what it has started", async () => {
    const text = `
child = subprocess.Popen(["sleep", "1000"])
open("${join(folder, "pid")}", "w").write(str(child.pid))
print("baton: reading", file=sys.stderr, flush=True)
time.sleep(1000)
`;
    await expect(callModule(call(text, 1500))).rejects.toMatchObject({
      code: "PREFLIGHT_TIMEOUT",
      expected: expect.stringContaining("deadlines.startMs"),
      found: "baton: reading",
    });
    await expectGone();
  });

  it("is killed by Ctrl-C", async () => {
    const calling = callModule(call(`print("baton: here", file=sys.stderr, flush=True)\ntime.sleep(1000)`));
    const refused = expect(calling).rejects.toMatchObject({ code: "INTERRUPTED", found: "SIGINT" });
    while (said.length === 0) await sleep(10);
    process.emit("SIGINT", "SIGINT");
    await refused;
    expect(process.listenerCount("SIGINT")).toBe(0);
  });

  it("may print a text for people", async () => {
    expect(await textOfModule(call("print('one')\nprint('two')"))).toBe("one\ntwo\n");
    await expect(textOfModule(call("sys.exit('no')"))).rejects.toMatchObject({
      code: "PREFLIGHT_FAILED",
      found: "exit code 1\n    no",
    });
  });

  async function expectGone(): Promise<void> {
    const pid = readFileSync(join(folder, "pid"), "utf8");
    await expect
      .poll(() => {
        try {
          // A zombie that its adopter has not waited for yet counts as gone.
          return readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]?.[0] ?? "gone";
        } catch {
          return "gone";
        }
      })
      .toMatch(/gone|Z/);
  }
});
