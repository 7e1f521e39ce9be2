/** `baton bench` as a user starts it. How fast it is is no test: two cores that are busy would fail it. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { GpuRow } from "../../src/bench/gpu/row.js";
import type { BenchRow } from "../../src/bench/row.js";
import { Baton, withFolder } from "./baton.js";
import { python } from "./light.js";

it("the bench prints its table and writes the same figures as JSON", async () => {
  await withFolder(async (folder) => {
    const file = join(folder, "bench.json");
    const words = ["bench", "--json", file, "--only", "sampler"];
    const ended = await new Baton(folder, words, { BATON_PYTHON: python }).ended;
    expect(ended.code, ended.output).toBe(0);
    const rows = JSON.parse(readFileSync(file, "utf8")) as BenchRow[];
    expect(rows.map(({ subject }) => subject)).toEqual(["sampler"]);
    for (const row of rows) {
      expect(Object.keys(row)).toEqual(
        expect.arrayContaining([
          "subject",
          "metric",
          "unit",
          "ours",
          "peer",
          "limit",
          "ratioToPeer",
          "ratioToLimit",
          "simulated",
          "goal",
          "met",
        ]),
      );
      expect(row.ours).toBeGreaterThan(0);
      expect(row.peer).toBeGreaterThan(0);
      expect(row.met).toBe((row.ratioToLimit as number) >= (row.goal as number));
      expect(ended.output).toContain(row.metric);
    }
    expect(rows.every(({ simulated }) => simulated)).toBe(true);
  });
});

it("an option that would say nothing is refused, with the subjects that it belongs to", async () => {
  await withFolder(async (folder) => {
    const words = ["bench", "--only", "pool", "--shapes", "tiny", "--list"];
    const ended = await new Baton(folder, words, { BATON_PYTHON: python }).ended;
    expect(ended.code).toBe(1);
    expect(ended.output).toMatch(/^BENCH_OPTION_UNUSED: .*\n.*--shapes, --list beside --subjects .*handoff/);
    expect(ended.output).not.toContain("measuring");
  });
});

it("a GPU's subjects run on stand-ins, survive one that fails, and are joined over commands", async () => {
  await withFolder(async (folder) => {
    const out = join(folder, "bench");
    const broken = join(folder, "broken");
    mkdirSync(broken);
    writeFileSync(join(broken, "config.json"), '{"model_type": "no such model"}');
    const bench = async (...words: string[]) =>
      new Baton(folder, ["bench", "--out", out, "--cycles", "2", ...words], { BATON_PYTHON: python }).ended;
    const read = () => JSON.parse(readFileSync(join(out, "bench.json"), "utf8")) as { rows: GpuRow[] };

    const first = await bench("--subjects", "sync,sleep", "--shapes", "tiny", "--model", broken);
    expect(first.code, first.output).toBe(1);
    expect(first.output).toMatch(/broken.*FAILED/);
    expect(new Set(read().rows.map(({ subject }) => subject))).toEqual(
      new Set([
        "sync from ZeRO-2",
        "sync from ZeRO-3, one rank",
        "sync from ZeRO-3, two ranks on the GPU",
        "sleep",
        "engine",
      ]),
    );
    const second = await bench("--subjects", "offload,handoff,nvml", "--shapes", "tiny", "--parts", "zero3,roomy");
    expect(second.code, second.output).toBe(0);
    expect(second.output).toContain("Rows come from 2 commands on the same GPU");
    expect(second.output).toContain("CPU per GPU");
    const { rows } = read();
    for (const subject of ["offload zero3", "handoff roomy", "sleep"]) {
      expect(
        rows.some((row) => row.subject === subject && (row.ours?.p50 ?? 0) > 0),
        subject,
      ).toBe(true);
    }
    for (const row of rows) expect([row.peer, row.ratioToPeer, row.met]).toEqual([null, null, null]);
    const handles = rows.filter(({ metric }) => metric === "handles opened").map(({ ours }) => ours?.p50);
    expect(handles).toEqual([1, 1, 2]);
  });
});

it("on several GPUs the engines hold what the ranks on all of them hold", async () => {
  await withFolder(async (folder) => {
    const out = join(folder, "bench");
    const bench = async (...words: string[]) =>
      new Baton(folder, ["bench", "--out", out, "--gpus", "2", ...words], { BATON_PYTHON: python }).ended;
    const refused = await bench("--subjects", "sync", "--tp", "3");
    expect(refused.output).toMatch(/^BAD_TOPOLOGY: /);

    const ended = await bench("--subjects", "sync", "--shapes", "tiny", "--cycles", "1");
    expect(ended.code, ended.output).toBe(0);
    const { rows } = JSON.parse(readFileSync(join(out, "bench.json"), "utf8")) as { rows: GpuRow[] };
    const figure = (subject: string, metric: string) =>
      rows.find((row) => row.subject === `${subject}, 2 GPUs, TP=2` && row.metric === metric)?.ours?.p50;
    for (const stage of ["ZeRO-2", "ZeRO-3"]) {
      expect(figure(`sync from ${stage}`, "parameters that differ from load_weights")).toBe(0);
      expect(figure(`sync from ${stage}`, "GPU memory taken meanwhile")).toBe(0);
      expect(figure(`sync from ${stage}`, "handles opened")).toBe(2);
    }
    // Of the matrices that are cut along their rows half of each worker's share lies with the other rank.
    expect(figure("sync from ZeRO-3", "bytes from other GPUs")).toBeGreaterThan(0);
    expect(figure("sync from ZeRO-2", "bytes from other GPUs")).toBeUndefined();
    const record = readFileSync(join(out, "parts", "engine-tiny-2gpus-1xtp2-ours.json"), "utf8");
    expect(JSON.parse(record).record.values["the same tokens after sleep"]).toBe(true);
  });
});

it("the bench finds a file that it cannot write before it measures", async () => {
  await withFolder(async (folder) => {
    const words = ["bench", "--json", join(folder, "nowhere/bench.json"), "--only", "gather"];
    const ended = await new Baton(folder, words, { BATON_PYTHON: python }).ended;
    expect(ended.output).toMatch(/^JSON_FILE_UNUSABLE: /);
    expect(ended.code).toBe(1);
  });
});
