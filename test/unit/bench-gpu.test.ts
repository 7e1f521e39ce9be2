/** What the bench on a GPU makes of its figures. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Layout, type PlanOptions, planParts } from "../../src/bench/gpu/plan.js";
import type { PartRecord, PartResult } from "../../src/bench/gpu/results.js";
import { rowsOf } from "../../src/bench/gpu/rows.js";
import { runFigures } from "../../src/bench/gpu/run-figures.js";
import { generatedShape } from "../../src/bench/gpu/shapes.js";
import { headingLines, headingOf, markdownTable } from "../../src/bench/gpu/table.js";
import { smallRun } from "./report-events.fixture.js";

const GIB = 2 ** 30;
const ONE_GPU: Layout = { gpus: 1, engines: 1, tensorParallel: 1 };
const TWO_GPUS: Layout = { gpus: 2, engines: 1, tensorParallel: 2 };
const EIGHT_GPUS: Layout = { gpus: 8, engines: 2, tensorParallel: 4 };
const folder = mkdtempSync(join(tmpdir(), "baton-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Changes {
  readonly samples?: PartRecord["samples"];
  readonly values?: PartRecord["values"];
  readonly uuid?: string;
  readonly simulated?: boolean;
  readonly command?: string;
  readonly graphs?: string;
  readonly failure?: PartResult["failure"];
  readonly layout?: Layout;
}

function result(subject: PartResult["part"]["subject"], side: "ours" | "stock", changes: Changes): PartResult {
  const { samples = {}, values = {}, uuid = "GPU-1", simulated = false, command = "one", failure = null } = changes;
  const variant = subject === "offload" ? "zero2" : subject === "handoff" ? "tight" : "";
  const layout = changes.layout ?? ONE_GPU;
  return {
    part: { name: `${subject}-${side}`, subject, side, shape: "7b", variant, release: "all", layout },
    command: { id: command, at: "2026-01-01T00:00:00Z", words: ["bench"], baton: "0.1.0", node: "v20" },
    graphs: changes.graphs ?? "vllm",
    failure,
    record: {
      job: {},
      finished: failure === null,
      at: "cycles",
      failure: null,
      seconds: 1,
      versions: { torch: "2.11.0", vllm: null },
      machine: { gpu: "NVIDIA H100", uuid, driver: "580.1", totalBytes: 80 * GIB, simulated, gpus: layout.gpus },
      values,
      samples,
    },
    run: null,
  };
}

const rowOf = (results: readonly PartResult[], metric: string) => {
  const row = rowsOf(results).find((one) => one.metric === metric);
  if (row === undefined) throw new Error(`no row ${metric}`);
  return row;
};

describe("rows", () => {
  const ours = result("offload", "ours", {
    samples: { "release seconds": [0.3, 0.2, 0.2], "saved bytes": [10e9, 10e9, 10e9], "left bytes": [0, 0, GIB] },
    values: { "limit save bytes/s": 55e9 },
  });
  const stock = result("offload", "stock", {
    samples: { "release seconds": [11, 0.5, 0.7], "saved bytes": [20e9, 20e9, 20e9] },
  });

  it("keep the cold cycle apart from the warm ones", () => {
    const row = rowOf([ours, stock], "release");
    expect(row.ours).toEqual({ first: 300, p50: 200, p95: 200, cycles: 2 });
    expect(row.peer).toEqual({ first: 11_000, p50: 500, p95: 700, cycles: 2 });
    expect(row.ratioToPeer).toBeCloseTo(2.5);
    expect([row.met, row.missedBy]).toEqual([true, null]);
  });

  it("say by how much a goal is missed", () => {
    const rate = rowOf([ours, stock], "release, live bytes a second");
    expect(rate.ours?.p50).toBeCloseTo(50);
    expect([rate.met, rate.missedBy]).toEqual([false, "0.909, not 0.92"]);
    const first = rowOf([ours, stock], "first release");
    expect([first.met, first.missedBy]).toEqual([false, "1.5, not 1.3"]);
  });

  it("judge nothing that was not measured", () => {
    const row = rowOf([ours], "release");
    expect([row.peer, row.ratioToPeer, row.met]).toEqual([null, null, null]);
  });

  it("do not put a peer of another GPU beside ours", () => {
    const elsewhere = result("offload", "stock", { samples: { "release seconds": [1, 1] }, uuid: "GPU-2" });
    const row = rowOf([ours, elsewhere], "release");
    expect([row.peer, row.met]).toEqual([null, null]);
    expect(row.note).toContain("another GPU");
  });

  it("say when the peer had other CUDA graphs", () => {
    const samples = { "sleep seconds": [1, 1], "wake weights seconds": [1, 1], "wake cache seconds": [1, 1] };
    const pair = [result("engine", "ours", { samples }), result("engine", "stock", { samples, graphs: "decode" })];
    expect(rowOf(pair, "sleep and both wakes").note).toContain("of the peer: decode");
    expect(rowOf(pair, "sleep and both wakes").ours?.p50).toBe(3000);
  });

  it("compare nothing on stand-in GPUs, and say so", () => {
    const simulated = [
      result("offload", "ours", { samples: ours.record?.samples ?? {}, simulated: true }),
      result("offload", "stock", { samples: stock.record?.samples ?? {}, simulated: true }),
    ];
    const rows = rowsOf(simulated);
    expect(rows.length).toBeGreaterThan(3);
    for (const row of rows) {
      expect([row.peer, row.limit, row.ratioToPeer, row.met, row.simulated]).toEqual([null, null, null, null, true]);
    }
    expect(markdownTable(rows)).toContain("simulated");
    expect(headingLines(headingOf(simulated, "0.1.0", new Date(0))).join(" ")).toContain("nothing is compared");
  });

  it("tell of a part that failed", () => {
    const failed = result("handoff", "stock", { failure: { code: "DEADLINE", message: "not finished | ever" } });
    const [row] = rowsOf([failed]);
    expect(row?.failure).toBe("DEADLINE: not finished | ever");
    expect(markdownTable(rowsOf([failed]))).toContain("FAILED");
    // A bar would end the cell.
    expect(markdownTable(rowsOf([failed]))).toContain("not finished / ever");
  });

  it("take the faster of the peer's two ways to send weights", () => {
    const pair = [
      result("engine", "ours", { samples: { "zero2 sync with checksums seconds": [0.02, 0.01] } }),
      result("engine", "stock", { samples: { "ipc unpacked seconds": [1, 0.2], "ipc packed seconds": [1, 0.1] } }),
    ];
    const row = rowOf(pair, "whole, with checksums");
    expect(row.peer?.p50).toBe(100);
    expect([row.met, row.missedBy]).toEqual([false, "10, not 12"]);
  });
});

describe("heading", () => {
  it("says when rows come from several commands, and whether the GPU was the same", () => {
    const here = result("offload", "ours", {});
    const same = [here, result("offload", "stock", { command: "two" })];
    expect(headingLines(headingOf(same, "0.1.0", new Date(0))).join(" ")).toContain("2 commands on the same GPU");
    const other = [here, result("offload", "stock", { command: "two", uuid: "GPU-2" })];
    expect(headingLines(headingOf(other, "0.1.0", new Date(0))).join(" ")).toContain("ON DIFFERENT GPUS");
  });

  it("speaks of CUDA graphs only where vLLM ran", () => {
    const lines = (simulated: boolean) =>
      headingLines(headingOf([result("engine", "ours", { simulated })], "0.1.0", new Date(0))).join(" ");
    expect(lines(false)).toContain("CUDA graphs");
    expect(lines(true)).not.toContain("CUDA graphs");
  });

  it("names what is installed and nothing else", () => {
    const heading = headingOf([result("offload", "ours", {})], "0.1.0", new Date(0));
    expect(heading.versions).toEqual({ torch: ["2.11.0"] });
  });
});

describe("plan", () => {
  const options: PlanOptions = {
    subjects: ["offload", "sync", "sleep", "handoff"],
    shapes: [generatedShape("1.5b", folder), generatedShape("7b", folder)],
    cycles: 10,
    graphs: "vllm",
    simulated: false,
    gpuBytes: 80 * GIB,
    layout: ONE_GPU,
    iterations: 1,
    reference: false,
    lora: 0,
    names: [],
  };

  it("trains what fits and syncs everything, ours and the peer one after the other", () => {
    const { parts, skipped } = planParts(options);
    expect(parts.map(({ name }) => name)).toEqual([
      "offload-zero2-1.5b-ours",
      "offload-zero2-1.5b-stock",
      "offload-zero3-1.5b-ours",
      "offload-zero3-1.5b-stock",
      "engine-1.5b-ours",
      "engine-1.5b-stock",
      "handoff-tight-1.5b-ours",
      "handoff-tight-1.5b-stock",
      "handoff-roomy-1.5b-ours",
      "handoff-roomy-1.5b-stock",
      "engine-7b-ours",
      "engine-7b-stock",
    ]);
    expect(skipped.map(({ name }) => name)).toEqual([
      "offload zero2 7b",
      "offload zero3 7b",
      "handoff tight 7b",
      "handoff roomy 7b",
    ]);
  });

  it("leaves training state no room beside a tight engine, and all it needs beside a roomy one", () => {
    const parts = planParts(options).parts.filter(({ subject, side }) => subject === "handoff" && side === "ours");
    const weights = 2 * 1.54e9;
    const room = parts.map(({ job }) => options.gpuBytes - Number(job.cache_bytes) - weights);
    expect(room[0]).toBeLessThan(7 * weights);
    expect(room[0]).toBeGreaterThan(weights + 4 * GIB);
    expect(room[1]).toBeGreaterThan(8 * weights + 8 * GIB);
    expect(parts.map(({ release }) => release)).toEqual(["all", "needed"]);
  });

  it("starts no peers on stand-in GPUs, and only the parts that are named", () => {
    const { parts } = planParts({ ...options, simulated: true, names: ["tight", "engine-7b"] });
    expect(parts.map(({ name }) => name)).toEqual([
      "handoff-tight-1.5b-ours",
      "engine-7b-ours",
      "handoff-tight-7b-ours",
    ]);
  });

  it("knows how large the shapes are", () => {
    for (const [name, parameters] of [
      ["0.5b", 494e6],
      ["1.5b", 1544e6],
      ["7b", 7616e6],
    ] as const) {
      expect(generatedShape(name, folder).parameters).toBeCloseTo(parameters, -7);
    }
  });
});

describe("figures of a run", () => {
  it("are the phases of each handoff, and what was released in it", () => {
    const { phases, releasedBytes, failure } = runFigures(smallRun());
    expect(phases.release).toHaveLength(2);
    for (const seconds of phases.release ?? []) expect(seconds).toBeGreaterThan(0);
    expect(releasedBytes).toHaveLength(2);
    expect(releasedBytes.every((bytes) => bytes > 0)).toBe(true);
    expect(failure).toBeNull();
  });
});
