/** `baton bench` on a GPU: runs the parts one after the other, then puts everything in the folder into one table. */
import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { hasNvidiaDriver } from "../../cli/gpus.js";
import { packageDescription, packageRoot } from "../../cli/package.js";
import { findPython } from "../../cli/python.js";
import { makeStandin, type Standin } from "../../controller/standin.js";
import { BatonError } from "../../errors.js";
import { folderUnusable, makeFolder } from "../../make-folder.js";
import { libbatonPath, openNvml, pythonPath, standinFolder } from "../../native.js";
import { formatRows, type Subject } from "../row.js";
import { controlFailures, readControl, runControl } from "./control.js";
import { drawPicture } from "./picture.js";
import { type GpuSubject, type Graphs, type Layout, type Part, planParts, type Skipped } from "./plan.js";
import { logTail, type PartContext, runPart } from "./processes.js";
import { type CommandStamp, type PartResult, readResults } from "./results.js";
import type { GpuRow } from "./row.js";
import { rowsOf } from "./rows.js";
import { runTables } from "./run-table.js";
import { generatedShape, givenShape, type Shape, type ShapeName } from "./shapes.js";
import { cellsLine, headingLines, headingOf, markdownTable, missesOf, notesOf } from "./table.js";

const STANDIN_BYTES = 512 * 2 ** 20;
/** What a GPU may hold more than at the beginning when the next part starts, and how long that is waited for. */
const LEFT_BYTES = 256 * 2 ** 20;
const FREE_MS = 20_000;

export interface GpuBenchOptions {
  /** Folder for parts, logs, bench.json and bench.md; what is there already goes into the table too. */
  readonly out: string;
  readonly subjects: readonly GpuSubject[];
  readonly shapes: readonly ShapeName[];
  readonly models: readonly string[];
  readonly cycles: number;
  readonly graphs: Graphs;
  readonly layout: Layout;
  /** Of handoffs: optimizer steps between two, a reference model, the rank of adapters (0: all parameters). */
  readonly iterations: number;
  readonly reference: boolean;
  readonly lora: number;
  /** Only parts whose names contain one of these; empty: all. */
  readonly parts: readonly string[];
  /** Prints the names of the parts and does nothing else. */
  readonly list: boolean;
  /** Subjects that need no GPU. */
  readonly control: readonly Subject[];
  readonly words: readonly string[];
}

/** @returns whether every part succeeded */
export async function gpuBench(options: GpuBenchOptions): Promise<boolean> {
  const out = resolve(options.out);
  try {
    for (const folder of ["parts", "logs", "runs"]) makeFolder(join(out, folder));
  } catch (error) {
    throw folderUnusable(out, error);
  }
  const real = await hasNvidiaDriver();
  const python = await findPython(["torch", "numpy", "msgspec"], process.env, packageRoot, process.cwd());
  const { gpus } = options.layout;
  const standin = real ? null : benchStandin(gpus);
  const command: CommandStamp = {
    id: randomUUID(),
    at: new Date().toISOString(),
    words: options.words,
    baton: packageDescription(),
    node: process.version,
  };
  let ok = true;
  let skipped: readonly Skipped[] = [];
  try {
    const gpu = real ? await Gpus.open(gpus) : null;
    const shapes: Shape[] = [
      ...options.shapes.map((name) => generatedShape(name, out)),
      ...options.models.map(givenShape),
    ];
    const plan = planParts({
      subjects: options.subjects,
      shapes,
      cycles: options.cycles,
      graphs: options.graphs,
      layout: options.layout,
      iterations: options.iterations,
      reference: options.reference,
      lora: options.lora,
      simulated: !real,
      gpuBytes: gpu?.totalBytes ?? STANDIN_BYTES,
      names: options.parts,
    });
    skipped = plan.skipped;
    for (const { name, why } of skipped) say(`not measured: ${name}: ${why}`);
    if (options.list) {
      for (const { name, deadlineMs } of plan.parts) process.stdout.write(`${name} (at most ${deadlineMs / 1000} s)\n`);
      return true;
    }
    ok = await runControl(out, options.control);
    const context: PartContext = {
      out,
      python: python.path,
      environment: { ...environment(python.path), BATON_LIBRARY: libbatonPath(), ...standin?.environment },
      runEnvironment: environment(python.path),
      command,
      simulatedBytes: real ? null : STANDIN_BYTES,
    };
    let graphs = options.graphs;
    for (const part of plan.parts) {
      await gpu?.untilFree();
      const result = await measured(part, graphs, context);
      // A vLLM that cannot compile here will not be able to for the next part either.
      graphs = part.startsEngine ? (result.graphs as Graphs) : graphs;
      ok &&= result.failure === null;
    }
  } finally {
    standin?.remove();
  }
  await report(out, skipped, python.path);
  return ok;
}

/** One part; without compilation, and a note of it, where the engine does not start as vLLM does by default. */
async function measured(part: Part, graphs: Graphs, context: PartContext): Promise<PartResult> {
  say(`measuring: ${part.name}`);
  const began = Date.now();
  let result = await runPart(part, graphs, context);
  const engineFailed = result.record?.at === "starting the engine";
  if (
    result.failure !== null &&
    part.startsEngine &&
    graphs === "vllm" &&
    engineFailed &&
    !result.record?.machine?.simulated
  ) {
    say(`  ${result.failure.code}: ${result.failure.message}`);
    for (const line of logTail(context.out, part.name)) say(`    ${line}`);
    say("  again, with CUDA graphs for decoding only");
    result = await runPart(part, "decode", context);
  }
  const seconds = ((Date.now() - began) / 1000).toFixed(0);
  say(
    `  ${result.failure === null ? "done" : `FAILED: ${result.failure.code}: ${result.failure.message}`} (${seconds} s)`,
  );
  if (result.failure !== null) for (const line of logTail(context.out, part.name)) say(`    ${line}`);
  return result;
}

/** Writes bench.json, bench.md and bench.svg from all that lies in the folder, and prints the table. */
async function report(out: string, skipped: readonly Skipped[], python: string): Promise<void> {
  const results = readResults(out);
  const measuredControl = readControl(out);
  const control = Object.values(measuredControl).flatMap(({ rows }) => rows);
  const rows: GpuRow[] = [...rowsOf(results), ...controlFailures(measuredControl)];
  const heading = headingOf(results, packageDescription(), new Date());
  const text = [
    ...headingLines(heading),
    "",
    cellsLine(rows),
    "",
    markdownTable(rows),
    "",
    ...runTables(results),
    ...missesOf(rows).flatMap((line) => [line, ""]),
    ...skipped.map(({ name, why }) => `Not measured: ${name}: ${why}.`),
    ...notesOf(rows),
    "",
    ...(control.length > 0 ? ["Without a GPU:", "", "```", formatRows(control).trimEnd(), "```", ""] : []),
  ].join("\n");
  const environmentOfVllm = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => name.startsWith("VLLM_")),
  );
  const json = { heading, rows, control, skipped, environment: environmentOfVllm, results };
  writeFileSync(join(out, "bench.json"), `${JSON.stringify(json, null, 1)}\n`);
  writeFileSync(join(out, "bench.md"), text);
  process.stdout.write(text);
  await drawPicture(python, join(out, "bench.json"), join(out, "bench.svg"));
  say(`results: ${out}`);
}

function environment(python: string): NodeJS.ProcessEnv {
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("BATON_")));
  return {
    HF_HUB_OFFLINE: "1",
    TOKENIZERS_PARALLELISM: "false",
    VLLM_NO_USAGE_STATS: "1",
    NCCL_NVLS_ENABLE: "0",
    ...inherited,
    BATON_PYTHON: python,
    PYTHONPATH: [pythonPath(), process.env.PYTHONPATH].filter((part) => part !== undefined && part !== "").join(":"),
    PYTHONUNBUFFERED: "1",
  };
}

function benchStandin(gpus: number): Standin {
  return makeStandin(
    `bench-gpu-${process.pid}`,
    {
      folder: standinFolder(),
      devices: gpus,
      bytesPerDevice: STANDIN_BYTES,
      granularityBytes: 2 << 20,
      faults: null,
    },
    {},
  );
}

/** The GPUs of the bench, as NVML sees them. */
class Gpus {
  /** Of each: the smallest. */
  readonly totalBytes: number;
  readonly #used: () => number;
  readonly #usedAtFirst: number;

  private constructor(totalBytes: number, used: () => number) {
    this.totalBytes = totalBytes;
    this.#used = used;
    this.#usedAtFirst = used();
  }

  /** @throws BatonError TOO_FEW_GPUS */
  static async open(count: number): Promise<Gpus> {
    const nvml = await openNvml();
    const there = nvml.deviceCount;
    if (there < count) {
      throw new BatonError({
        code: "TOO_FEW_GPUS",
        message: "This machine has fewer GPUs than the bench shall use.",
        expected: `${count} GPUs`,
        found: `${there}`,
        action: "Give a smaller number to --gpus.",
      });
    }
    const all = Array.from({ length: count }, (_, gpu) => gpu);
    return new Gpus(Math.min(...all.map((gpu) => nvml.memory(gpu).totalBytes)), () =>
      all.reduce((sum, gpu) => sum + nvml.memory(gpu).usedBytes, 0),
    );
  }

  /** Waits until the last part's memory is back; goes on after a while with a warning. */
  async untilFree(): Promise<void> {
    const ends = Date.now() + FREE_MS;
    while (this.#used() > this.#usedAtFirst + LEFT_BYTES) {
      if (Date.now() > ends) {
        say(`warning: ${this.#used() - this.#usedAtFirst} bytes more than at the beginning are in use on the GPUs`);
        return;
      }
      await sleep(200);
    }
  }
}

const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};
