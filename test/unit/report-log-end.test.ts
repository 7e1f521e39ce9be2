import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { endOfLog } from "../../src/report/log-end.js";

/** As torch 2.11 writes it. */
const SAW =
  "E1126 09:36:39.412000 24440 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: -6) " +
  "local_rank: 1 (pid: 24447) of binary: /opt/python";
const TOLD = [
  "W1126 12:10:34.513000 12592 torch/distributed/elastic/agent/server/api.py:739] Received 15 death signal, shutting down",
  "W1126 12:10:34.514000 12592 torch/distributed/elastic/multiprocessing/api.py:1012] Sending process 12598 closing",
];
const EPILOGUE = [
  "Traceback (most recent call last):",
  ...Array.from({ length: 30 }, (_, line) => `  File "torch/distributed/run.py", line ${line}`),
  "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
];

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "bt-log-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

function log(...lines: string[]): string {
  const path = join(folder, "a.log");
  writeFileSync(path, `${lines.join("\n")}\n`);
  return path;
}

describe("the end of a log", () => {
  it("is its last lines", () => expect(endOfLog(log("1", "2", "3"), 2)).toEqual(["2", "3"]));

  it("is empty without a log", () => {
    expect(endOfLog(null, 3)).toEqual([]);
    expect(endOfLog(join(folder, "none.log"), 3)).toEqual([]);
    writeFileSync(join(folder, "empty.log"), "");
    expect(endOfLog(join(folder, "empty.log"), 3)).toEqual([]);
  });

  it("is what the rank said, not the launcher's own traceback", () =>
    expect(endOfLog(log("step 1", "terminate called", SAW, ...EPILOGUE), 2)).toEqual(["terminate called", SAW]));

  it("is what the rank said when the launcher was told to end", () =>
    expect(endOfLog(log("step 1", "ValueError", ...TOLD, ...EPILOGUE), 2)).toEqual(["step 1", "ValueError"]));

  it("keeps what was said between, and names the rank once", () =>
    expect(endOfLog(log("ValueError", ...TOLD.slice(1), SAW, ...EPILOGUE), 5)).toEqual(["ValueError", SAW]));

  it("is that of the last failure, when the launcher started the ranks again", () =>
    expect(endOfLog(log("first", SAW, "second", SAW, ...EPILOGUE), 2)).toEqual(["second", SAW]));

  it("is read from the end of a long log", () => {
    const lines = Array.from({ length: 20_000 }, (_, line) => `line ${line}`);
    expect(endOfLog(log(...lines), 1)).toEqual(["line 19999"]);
  });
});
