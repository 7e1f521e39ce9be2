/** A part of the bench that hangs or dies costs its own row and leaves nothing behind. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Part } from "../../src/bench/gpu/plan.js";
import { type PartContext, runPart } from "../../src/bench/gpu/processes.js";
import { readResults } from "../../src/bench/gpu/results.js";
import { processInfo } from "../../src/native.js";

const folder = mkdtempSync(join(tmpdir(), "baton-test-"));
const context: PartContext = {
  out: folder,
  python: "python3",
  environment: { ...process.env, PYTHONPATH: folder },
  runEnvironment: process.env,
  command: { id: "one", at: "2026-01-01T00:00:00Z", words: [], baton: "0.1.0", node: process.version },
  simulatedBytes: null,
};

const alive = (pid: number): boolean => !["Z", "X", undefined].includes(processInfo(pid)?.state);

function part(module: string, deadlineMs: number): Part {
  return {
    name: module,
    kind: "module",
    subject: "offload",
    side: "ours",
    shape: "tiny",
    variant: "zero2",
    module,
    job: {},
    startsEngine: false,
    deadlineMs,
    release: "all",
    layout: { gpus: 1, engines: 1, tensorParallel: 1 },
  };
}

beforeAll(() => {
  for (const name of ["parts", "logs"]) mkdirSync(join(folder, name));
  writeFileSync(
    join(folder, "hangs.py"),
    "import subprocess, time\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)\ntime.sleep(600)\n",
  );
  writeFileSync(join(folder, "dies.py"), "raise SystemExit('no such device')\n");
  writeFileSync(
    join(folder, "fails.py"),
    "import json, sys\njob = json.loads(sys.argv[1])\n" +
      "failure = {'code': 'OUT_OF_MEMORY', 'message': 'too much', 'at': 'cycles'}\n" +
      "record = {'finished': False, 'at': 'cycles', 'failure': failure, 'samples': {'a': [1]}}\n" +
      "open(job['result'], 'w').write(json.dumps(record))\nraise SystemExit(1)\n",
  );
});
afterAll(() => rmSync(folder, { recursive: true }));

it("ends a part at its deadline, with everything that it started", async () => {
  const began = performance.now();
  const result = await runPart(part("hangs", 1500), "vllm", context);
  expect(result.failure?.code).toBe("DEADLINE");
  expect(performance.now() - began).toBeLessThan(10_000);
  const child = Number(readFileSync(join(folder, "logs", "hangs.log"), "utf8"));
  expect(child).toBeGreaterThan(0);
  await expect.poll(() => alive(child)).toBe(false);
});

it("says what a part said last when it died", async () => {
  const result = await runPart(part("dies", 20_000), "vllm", context);
  expect(result.failure?.code).toBe("BENCH_PROCESS_FAILED");
  expect(result.failure?.message).toContain("no such device");
});

it("keeps what a part had measured before it failed", async () => {
  const result = await runPart(part("fails", 20_000), "vllm", context);
  expect(result.failure).toEqual({ code: "OUT_OF_MEMORY", message: "while cycles: too much" });
  const kept = readResults(folder).find(({ part: { name } }) => name === "fails");
  expect(kept?.record?.samples).toEqual({ a: [1] });
});
