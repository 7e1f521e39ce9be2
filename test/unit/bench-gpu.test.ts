/** What the bench on a GPU makes of its figures. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type Layout, type PlanOptions, planParts } from "../../src/bench/gpu/plan.js";
import type { PartResult } from "../../src/bench/gpu/results.js";
import { rowsOf } from "../../src/bench/gpu/rows.js";
import { runFigures } from "../../src/bench/gpu/run-figures.js";
import { runTables } from "../../src/bench/gpu/run-table.js";
import { generatedShape } from "../../src/bench/gpu/shapes.js";
import { cellsLine, headingLines, headingOf, markdownTable, missesOf } from "../../src/bench/gpu/table.js";
import type { RunEvent } from "../../src/report/events.js";
import { GIB, MIB, ONE_GPU, result, rowOf } from "./bench-gpu.fixture.js";
import { smallRun } from "./report-events.fixture.js";

const TWO_GPUS: Layout = { gpus: 2, engines: 1, tensorParallel: 2 };
const EIGHT_GPUS: Layout = { gpus: 8, engines: 2, tensorParallel: 4 };
const folder = mkdtempSync(join(tmpdir(), "baton-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

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
      result("engine", "ours", {
        samples: {
          "zero2 export with checksums seconds": [0.02, 0.004],
          // Nor is what an export takes while weights wake.
          "wake weights seconds": [0.02, 0.005],
          "zero2 exported sync with checksums seconds": [0.01, 0.008],
          "zero2 cache after sync with checksums seconds": [0.02, 0.012],
          // What the cache takes by itself is not the sync's.
          "zero2 cache after sync seconds": [0.05, 0.01],
        },
      }),
      result("engine", "stock", { samples: { "ipc unpacked seconds": [1, 0.2], "ipc packed seconds": [1, 0.1] } }),
    ];
    const row = rowOf(pair, "as a run waits for it, with checksums");
    expect(row.peer?.p50).toBe(100);
    expect([row.met, row.missedBy]).toEqual([false, "10, not 12"]);
    // Ranks that still sum when the weights are awake are waited for.
    const late = { ...pair[0]?.record?.samples, "zero2 export with checksums seconds": [0.02, 0.011] };
    expect(rowOf([result("engine", "ours", { samples: late })], row.metric).ours?.p50).toBeCloseTo(16);
    // A cache that woke faster than others takes nothing off the sync.
    const fast = { ...pair[0]?.record?.samples, "zero2 cache after sync with checksums seconds": [0.02, 0.003] };
    expect(rowOf([result("engine", "ours", { samples: fast })], row.metric).ours?.p50).toBe(8);
    // Without the cache's own time there is nothing to subtract, which is not the same as zero.
    const { "zero2 cache after sync seconds": _, ...unknown } = pair[0]?.record?.samples ?? {};
    const rows = rowsOf([result("engine", "ours", { samples: unknown })]);
    expect(rows.filter(({ metric }) => metric === row.metric)).toEqual([]);
  });

  it("say why a goal is missed, only where it is", () => {
    const sync = (seconds: number) =>
      result("engine", "ours", {
        samples: {
          "wake weights seconds": [0.01, 0.01],
          "zero2 export seconds": [0.01, 0.002],
          "zero2 exported sync seconds": [1, seconds],
          "limit copy seconds": [0.01, 0.01],
        },
      });
    const [missed] = missesOf(rowsOf([sync(0.015)]));
    expect(missed).toContain(
      "as a run waits for it, without checksums: 0.667, not 0.85 (0.85 of the limit). Why: mapping",
    );
    expect(missesOf(rowsOf([sync(0.011)]))).toEqual([]);
    expect(rowOf([sync(0.011)], "as a run waits for it, without checksums").why).toBeNull();
  });

  it("hold syncs from partitions to the peer's rate", () => {
    const metric = "as a run waits for it, with checksums";
    const withSums = ["export", "exported sync", "cache after sync"].map((part) => `${part} with checksums`);
    const names = ["zero3", "zero3x2"].flatMap((name) =>
      [...withSums, "cache after sync"].map((part) => [`${name} ${part} seconds`, [0.02, 0.02]]),
    );
    const pair = [
      result("engine", "ours", { samples: { ...Object.fromEntries(names), "wake weights seconds": [0.02, 0.02] } }),
      result("engine", "stock", { samples: { "gather and load seconds": [0.03, 0.03] } }),
    ];
    const rows = rowsOf(pair).filter((row) => row.metric === metric);
    expect(rows.map(({ goal, met }) => [goal, met])).toEqual(Array(2).fill(["as fast as the peer", true]));
  });
});

describe("cells", () => {
  const samples = (cycles: number) => ({ samples: { "sleep seconds": Array(cycles + 1).fill(0.02) } });
  it("are told with their number of cycles, and where those are too few for a p95", () => {
    const few = rowsOf([result("engine", "ours", samples(4))]);
    expect(cellsLine(few)).toBe(
      "Cells: first (cold); p50 / p95 of the later cycles, which are 4: too few for a p95 that means something.",
    );
    const many = rowsOf([result("engine", "ours", samples(20)), result("engine", "stock", samples(12))]);
    expect(cellsLine(many)).toBe("Cells: first (cold); p50 / p95 of the later cycles, which are 12 to 20.");
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

describe("several GPUs", () => {
  const samples = {
    "limit copy seconds": [0.003, 0.002, 0.002],
    "zero3 exported sync seconds": [0.02, 0.012, 0.012],
    "zero3 copy seconds": [0.012, 0.01, 0.01],
  };
  const values = {
    "limit copy bytes": 4e9,
    "limit peer bytes/s": 400e9,
    "zero3 copied bytes": 4e9,
    "zero3 copied from other GPUs bytes": 3.6e9,
    "zero3 parameters that differ from load_weights": [],
  };
  const ours = result("engine", "ours", { layout: EIGHT_GPUS, samples, values });

  it("are told from one, and from other engines on them", () => {
    const other = result("engine", "stock", { layout: TWO_GPUS, samples: { "ipc unpacked seconds": [1, 1] } });
    const subjects = new Set(rowsOf([ours, other, result("engine", "ours", {})]).map(({ subject }) => subject));
    expect([...subjects]).toEqual(["sync from ZeRO-3, 8 GPUs, 2 engines of TP=4"]);
    const zero2 = result("engine", "ours", {
      layout: EIGHT_GPUS,
      samples: { "zero2 export seconds": [0.5, 0.5], "zero2 exported sync seconds": [0.5, 0.5] },
    });
    expect(rowOf([zero2, other], "whole, without checksums").peer).toBeNull();
    const peer = result("engine", "stock", { layout: EIGHT_GPUS, samples: { "ipc unpacked seconds": [1, 1] } });
    expect(rowOf([zero2, other, peer], "whole, without checksums").peer?.p50).toBe(1000);
    const heading = headingLines(headingOf([ours], "0.1.0", new Date(0))).join(" ");
    expect(heading).toContain("8 x NVIDIA H100");
  });

  it("are measured by what the links between them allow, where that is less", () => {
    const whole = rowOf([ours], "of that, the copy");
    // 3.6 GB at 400 GB/s take 9 ms, the rest 0.2 ms on the GPU itself at the same time: 4 GB in 9 ms.
    expect(whole.limit).toBeCloseTo(444.4, 0);
    expect(whole.ours?.p50).toBeCloseTo(400);
    const links = rowOf([ours], "of that, what comes from other GPUs");
    expect([links.ours?.p50, links.limit, links.met]).toEqual([360, 400, true]);
    const near = { ...values, "zero3 copied from other GPUs bytes": 0.4e9 };
    const local = rowOf([result("engine", "ours", { layout: EIGHT_GPUS, samples, values: near })], links.metric);
    expect(local.goal).toBeNull();
  });

  it("have goals of their own", () => {
    const woken = { ...samples, "wake weights seconds": [0.01, 0.01], "zero3 export seconds": [0.02, 0.004, 0.004] };
    const whole = result("engine", "ours", { layout: EIGHT_GPUS, samples: woken, values });
    const sync = rowOf([whole], "as a run waits for it, without checksums");
    expect([sync.goal, sync.met]).toEqual(["at most 15 ms", true]);
    const equal = rowOf([ours], "parameters that differ from load_weights");
    expect([equal.ours?.p50, equal.met]).toEqual([0, true]);
    const wrong = { ...values, "zero3 parameters that differ from load_weights": ["norm"] };
    const differs = rowOf([result("engine", "ours", { layout: EIGHT_GPUS, samples, values: wrong })], equal.metric);
    expect(differs.met).toBe(false);
    const released = { "release seconds": [0.3, 0.2, 0.2], "saved bytes": [10e9, 10e9, 10e9] };
    const offload = (layout: Layout) =>
      rowOf(
        [result("offload", "ours", { layout, samples: released, values: { "limit save bytes/s": 56e9 } })],
        "release, live bytes a second",
      );
    expect(offload({ gpus: 2, engines: 0, tensorParallel: 0 }).met).toBe(false);
    expect(offload({ gpus: 8, engines: 0, tensorParallel: 0 }).met).toBe(true);
  });

  it("are started by a launcher, with what is partitioned counted once", () => {
    const options: PlanOptions = {
      subjects: ["offload", "sync", "handoff"],
      shapes: [generatedShape("7b", folder)],
      cycles: 19,
      graphs: "vllm",
      simulated: false,
      gpuBytes: 80 * GIB,
      layout: EIGHT_GPUS,
      iterations: 2,
      reference: true,
      lora: 0,
      names: [],
    };
    const { parts, skipped } = planParts(options);
    expect(skipped).toEqual([]);
    expect(parts.map(({ name, kind }) => `${kind} ${name}`)).toEqual([
      "ranks offload-zero2-7b-8gpus-ours",
      "ranks offload-zero2-7b-8gpus-stock",
      "ranks offload-zero3-7b-8gpus-ours",
      "ranks offload-zero3-7b-8gpus-stock",
      "module engine-7b-8gpus-2xtp4-ours",
      "module engine-7b-8gpus-2xtp4-stock",
      "run handoff-tight-reference-2steps-7b-8gpus-2xtp4-ours",
      "ranks handoff-tight-reference-2steps-7b-8gpus-2xtp4-stock",
      "run handoff-roomy-reference-2steps-7b-8gpus-2xtp4-ours",
      "ranks handoff-roomy-reference-2steps-7b-8gpus-2xtp4-stock",
      "run handoff-tight-zero3-reference-2steps-7b-8gpus-2xtp4-ours",
      "ranks handoff-tight-zero3-reference-2steps-7b-8gpus-2xtp4-stock",
    ]);
    expect(parts[6]?.job).toMatchObject({ gpus: 8, engines: 2, tp: 4, stage: 2, iterations: 2, reference: true });
    // With all parameters the 14B shape does not fit under ZeRO-2 beside its reference; with adapters it does.
    const large = { ...options, shapes: [generatedShape("14b", folder)], subjects: ["handoff"] as const };
    expect(planParts(large).skipped.map(({ name }) => name)).toContain("handoff tight 14b");
    const adapters = planParts({ ...large, lora: 32 });
    expect(adapters.skipped).toEqual([]);
    expect(adapters.parts[0]?.job).toMatchObject({ lora: 32 });
  });

  it("say what was moved on each of them, and who held how much when", () => {
    const at = { monotonicMs: 2_000_000, wall: new Date(0).toISOString() };
    const taken = { phase: "sync", name: "syncing", startMs: 1, durationMs: 1 };
    const events: RunEvent[] = [
      ...smallRun(),
      { ...at, type: "resumed", rank: 1, gpu: 1, handoff: 2, copiedBytes: 2 * MIB, pendingBytes: 3 * MIB },
      {
        ...{ ...at, ...taken, type: "work", process: "worker 1 of engine 0" },
        figures: { copiedBytes: 4e6, copySeconds: 0.002 },
      },
    ];
    const { gpus, ledger, checks } = runFigures(events);
    expect(gpus.map(({ gpu }) => gpu)).toEqual([0, 1]);
    for (const one of gpus) expect(one.releasedBytes).toHaveLength(2);
    expect(gpus.map(({ returnedBytes }) => returnedBytes)).toEqual([[], [5 * MIB]]);
    expect(gpus.map(({ pulledBytes }) => pulledBytes)).toEqual([[], [4e6]]);
    expect(ledger.find(({ phase }) => phase === "train")).toEqual({
      phase: "train",
      usedBytes: [90 * MIB, 80 * MIB],
      peakBytes: [100 * MIB, 90 * MIB],
    });
    expect(checks.failed).toBe(0);
    const left = [{ gpu: 0, trainingBytes: GIB, engineBytes: null }];
    const run: PartResult = { ...result("handoff", "ours", { layout: TWO_GPUS }), run: runFigures(events, left) };
    const text = runTables([run, { ...run, part: { ...run.part, layout: ONE_GPU } }]).join("\n");
    expect(text.match(/^### /gm)).toHaveLength(1);
    expect(text).toContain("### handoff tight, 2 GPUs, TP=2, 7b");
    expect(text).toMatch(/\| release +\| \S+; \S+ \/ \S+ +\| 2 /);
    expect(text).toMatch(/\| 0 .*\| 1 +\| - +\|/);
    expect(text).toMatch(/\| 1 .*\| 2 +\| - +\| - +\|/); // 4 MB in 2 ms
    expect(text).toMatch(/\| train +\| 0.0879 \(0.0977\) +\| 0.0781 \(0.0879\)/);
  });
});
