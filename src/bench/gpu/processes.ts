/** Runs one part: a process of its own, a log, a deadline; nothing of it is left afterwards. */
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { packageRoot } from "../../cli/package.js";
import { freePort } from "../../cli/port.js";
import { startChild } from "../../controller/children.js";
import { guardPath, processInfo } from "../../native.js";
import type { RecipeInput } from "../../recipe/schema.js";
import { readEvents } from "../../report/events.js";
import { endOfLog } from "../../report/log-end.js";
import type { Summary } from "../../report/summary.js";
import type { Part } from "./plan.js";
import { type CommandStamp, type PartResult, type RunFigures, readRecord, recordPath, writeResult } from "./results.js";
import { runFigures } from "./run-figures.js";

/** How long this process may be stopped before its parts are ended. */
const STOPPED_MS = 600_000;
const LOG_LINES = 12;

export interface PartContext {
  readonly out: string;
  readonly python: string;
  /** Of the parts that are Python modules. */
  readonly environment: NodeJS.ProcessEnv;
  /** Of `baton run`, which makes its own. */
  readonly runEnvironment: NodeJS.ProcessEnv;
  readonly command: CommandStamp;
  readonly simulatedBytes: number | null;
}

/** Runs the part, writes its result, and returns it; whatever goes wrong is in it. */
export async function runPart(part: Part, graphs: string, context: PartContext): Promise<PartResult> {
  const { out } = context;
  for (let rank = 0; rank < part.layout.gpus; rank += 1) rmSync(recordPath(out, part.name, rank), { force: true });
  const runFolder = join(out, "runs", part.name);
  const job = {
    ...part.job,
    graphs,
    result: recordPath(out, part.name),
  };
  for (const left of ["events.jsonl", "summary.json"]) {
    if (part.kind === "run") rmSync(join(runFolder, left), { force: true });
  }
  const words = await wordsOf(part, graphs, job, runFolder, context);
  const log = join(out, "logs", `${part.name}.log`);
  const environment = part.kind === "run" ? context.runEnvironment : context.environment;
  const ended = await execute(words, environment, log, part.deadlineMs);
  const record = readRecord(out, part.name);
  const run = part.kind === "run" ? runFigures(eventsOf(join(runFolder, "events.jsonl")), leftOf(runFolder)) : null;
  const { name, subject, side, shape, variant, release, layout } = part;
  const others = Array.from({ length: layout.gpus }, (_, rank) => readRecord(out, name, rank));
  const result: PartResult = {
    part: { name, subject, side, shape, variant, release, layout },
    command: context.command,
    graphs,
    failure: failureOf(ended, part, others.find((one) => one?.failure != null) ?? record, run, log),
    record,
    run,
  };
  writeResult(out, result);
  return result;
}

function failureOf(
  ended: Ended,
  part: Part,
  record: PartResult["record"],
  run: PartResult["run"],
  log: string,
): PartResult["failure"] {
  if (run !== null && run.failure !== null) return run.failure;
  if (record !== null && record.failure !== null) {
    const { code, message, at } = record.failure;
    return { code, message: `while ${at}: ${message.split("\n").slice(0, 4).join("; ")}` };
  }
  const at = record === null ? "before its first step" : `while ${record.at}`;
  if (ended.late) return { code: "DEADLINE", message: `not finished within ${part.deadlineMs / 1000} s (${at})` };
  if (ended.code === 0 && record?.finished === true) return null;
  const how = ended.signal ?? `exit code ${ended.code}`;
  return { code: "BENCH_PROCESS_FAILED", message: `${how} ${at}; ${endOfLog(log, 3).join(" | ")}` };
}

/** The command of a part. Several ranks of a run are started as most users do. */
async function wordsOf(
  part: Part,
  graphs: string,
  job: Readonly<Record<string, unknown>>,
  folder: string,
  context: PartContext,
): Promise<string[]> {
  const { python } = context;
  const module = ["-m", part.module, JSON.stringify(job)];
  if (part.kind === "module") return [python, "-u", ...module];
  const port = String(await freePort());
  const { gpus } = part.layout;
  const torchrun = [python, "-m", "torch.distributed.run", "--nproc_per_node", String(gpus)];
  torchrun.push("--master_addr", "127.0.0.1", "--master_port", port);
  if (part.kind === "ranks") return [...torchrun, ...module];
  const accelerate = [python, "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_machines", "1"];
  accelerate.push("--num_processes", String(gpus), "--main_process_port", port);
  const launcher = gpus === 1 ? torchrun : accelerate;
  const recipe = writeRecipe(part, graphs, job, folder, context);
  const baton = [process.execPath, join(packageRoot, "dist", "cli", "main.js")];
  return [...baton, "run", recipe, "--log", "--", ...launcher, ...module];
}

function writeRecipe(
  part: Part,
  graphs: string,
  job: Readonly<Record<string, unknown>>,
  folder: string,
  context: PartContext,
): string {
  const { gpus, engines, tensorParallel } = part.layout;
  const recipe: RecipeInput = {
    engine: {
      kind: context.simulatedBytes === null ? "vllm" : "small",
      model: String(job.model),
      engines,
      tensorParallel,
      dtype: "bfloat16",
      maxModelLength: context.simulatedBytes === null ? 1024 : 64,
      maxSequences: context.simulatedBytes === null ? 64 : 16,
      cacheBytes: Number(job.cache_bytes),
      options: context.simulatedBytes === null ? engineOptions(graphs) : {},
    },
    gpus: {
      count: gpus,
      simulated: context.simulatedBytes === null ? null : { memoryBytes: context.simulatedBytes },
    },
    ranks: gpus,
    release: part.release,
    out: folder,
  };
  const file = join(context.out, "parts", `${part.name}.recipe`);
  writeFileSync(file, `${JSON.stringify(recipe, null, 2)}\n`);
  return file;
}

function engineOptions(graphs: string): Record<string, unknown> {
  if (graphs === "none") return { enforceEager: true };
  return graphs === "vllm" ? {} : { compilationConfig: { mode: 0, cudagraph_mode: "FULL_DECODE_ONLY" } };
}

function eventsOf(path: string): ReturnType<typeof readEvents> {
  try {
    return readEvents(path);
  } catch {
    return [];
  }
}

/** From the summary, where the run got so far. */
function leftOf(folder: string): RunFigures["left"] {
  try {
    const summary = JSON.parse(readFileSync(join(folder, "summary.json"), "utf8")) as Summary;
    return summary.gpus.map(({ index, leftByTrainingBytes, leftByEngineBytes }) => ({
      gpu: index,
      trainingBytes: leftByTrainingBytes,
      engineBytes: leftByEngineBytes,
    }));
  } catch {
    return [];
  }
}

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly late: boolean;
}

/** Under a guard: whatever becomes of the part or of this process, nothing that it started is left. */
async function execute(
  words: readonly string[],
  environment: NodeJS.ProcessEnv,
  log: string,
  deadlineMs: number,
): Promise<Ended> {
  rmSync(log, { force: true });
  const child = await startChild({
    name: "part of the bench",
    command: words,
    environment,
    guardPath: guardPath(),
    controller: { pid: process.pid, startTime: processInfo(process.pid)?.startTime ?? 0n },
    stoppedDeadlineMs: STOPPED_MS,
    remove: [],
    sharedMemory: null,
    logPath: log,
  });
  const timer = new AbortController();
  const late = await Promise.race([
    child.ended.then(() => false),
    sleep(deadlineMs, true, { signal: timer.signal }).catch(() => false),
  ]);
  timer.abort();
  // The guard gives the part a moment for an orderly end, then ends all of it.
  if (late) child.signal("SIGTERM");
  return { ...(await child.ended), late };
}

/** The end of a part's log, for people. */
export const logTail = (out: string, name: string): string[] => endOfLog(join(out, "logs", `${name}.log`), LOG_LINES);
