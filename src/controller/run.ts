/** A whole run on one node: from nothing to nothing left, with its reports. */
import { randomBytes } from "node:crypto";
import { toBatonError } from "../errors.js";
import { becomeSubreaper, monotonicNs, type Nvml, processInfo } from "../native.js";
import type { EndReason, PhaseConfig } from "../phases/index.js";
import type { Failure } from "../protocol/messages.js";
import { phaseConfig, type Recipe } from "../recipe/index.js";
import { EventLog, type StartedEvent } from "../report/events.js";
import { ledgerOf } from "../report/ledger.js";
import type { Progress } from "../report/progress.js";
import type { Summary } from "../report/summary.js";
import { writeReports } from "../report/write.js";
import type { Child } from "./children.js";
import { Bystanders } from "./ending.js";
import { explain } from "./explain.js";
import { makeSocketFolder, type RunFolder, type SocketFolder, socketParent, takeRunFolder } from "./folders.js";
import { type Gpus, openGpus } from "./gpus.js";
import { Heart } from "./heart.js";
import { launch } from "./launch.js";
import { BatonNode, type EndCommand } from "./node.js";
import { removeSharedMemory, sweep } from "./ownership.js";
import { Recorder } from "./recorder.js";
import { type Interrupt, onCrash, onInterrupt } from "./signals.js";
import { sharedMemoryFolder } from "./standin.js";
import { leftDeviceBytes, stopEverything } from "./stop.js";

export interface RunPlan {
  /** Of Baton. */
  readonly version: string;
  /** `engine.model` absolute; has passed `checkStart`. */
  readonly recipe: Recipe;
  /** The command that starts the ranks. */
  readonly command: readonly string[];
  /** Absolute path of DIR. */
  readonly out: string;
  /** Interpreter of the engines. */
  readonly python: string;
  /** false: the command writes to the terminal; true: to DIR/logs/launcher.log. */
  readonly logCommand: boolean;
  readonly environment: NodeJS.ProcessEnv;
  readonly progress: Progress;
}

export interface RunOutcome {
  readonly exitCode: number;
  readonly failure: Failure | null;
  readonly summary: Summary;
  /** Logs of the processes that a failure is about, or all of them. */
  readonly logs: readonly string[];
}

/** A stopped controller is given up after the shortest deadline, within these bounds. */
const STOPPED_MS = { least: 1_000, most: 30_000 };

const nowMs = (): number => Number(monotonicNs()) / 1e6;

/**
 * Runs a recipe to its end. Whatever happens after DIR is taken ends in a summary with an exit.
 *
 * @throws BatonError when the start is refused (by the machine, or a DIR that is in use): then nothing in DIR was touched
 */
export async function runNode(plan: RunPlan): Promise<RunOutcome> {
  const undo: (() => void)[] = [];
  try {
    // First, so that a start that is refused does not cost the results of the run before.
    const ready = await prepare(plan, undo);
    const folder = takeRunFolder(plan.out);
    undo.push(() => folder.release());
    const log = new EventLog(folder.file("events.jsonl"), nowMs);
    undo.push(() => log.close());
    const end = await run(plan, ready, folder, log, undo).catch((error: unknown) => notBegun(plan, ready, log, error));
    log.add({ type: "exit", reason: end.reason, code: end.exitCode, failure: end.failure });
    return { exitCode: end.exitCode, failure: end.failure, logs: end.logs, summary: writeReports(log.events, folder) };
  } finally {
    for (const step of undo.reverse()) step();
  }
}

/** What a run has before it takes DIR: everything that can be refused without a process of its own. */
interface Ready extends Gpus {
  readonly name: string;
  readonly socket: SocketFolder;
}

async function prepare(plan: RunPlan, undo: (() => void)[]): Promise<Ready> {
  const name = randomBytes(6).toString("hex");
  // What runs before this one left whose controllers and guards were killed.
  sweep([socketParent(plan.environment), sharedMemoryFolder()]);
  const socket = makeSocketFolder(name, plan.environment);
  undo.push(() => socket.remove());
  undo.push(() => removeSharedMemory(socket.path));
  return { name, socket, ...(await openGpus(plan.recipe, plan.environment, name, undo)) };
}

interface RunEnd {
  readonly reason: EndReason;
  readonly exitCode: number;
  readonly failure: Failure | null;
  readonly logs: readonly string[];
}

/** The end of a run that could not begin although nothing spoke against it. */
function notBegun(plan: RunPlan, { name, nvml }: Ready, log: EventLog, error: unknown): RunEnd {
  if (!log.events.some(({ type }) => type === "started")) log.add(startedEvent(plan, name, nvml.simulated, []));
  return { reason: "failed", exitCode: 1, failure: toBatonError(error).toFields(), logs: [] };
}

function startedEvent(plan: RunPlan, run: string, simulated: boolean, gpuBytes: readonly number[]): StartedEvent {
  const config = phaseConfig(plan.recipe);
  return {
    type: "started",
    run,
    version: plan.version,
    simulated,
    topology: {
      gpus: config.gpus,
      ranks: config.ranks ?? 0,
      engines: config.engines,
      tensorParallel: config.tensorParallel,
      zeroStage: null,
    },
    gpuBytes,
    command: plan.command,
  };
}

async function run(
  plan: RunPlan,
  { name, socket, nvml, sampler, standin }: Ready,
  folder: RunFolder,
  log: EventLog,
  undo: (() => void)[],
): Promise<RunEnd> {
  const { recipe, progress } = plan;
  const config = phaseConfig(recipe);
  const gpuBytes = Array.from({ length: config.gpus }, (_, gpu) => nvml.memory(gpu).totalBytes);
  log.onEvent((event) => progress.show(event));
  log.add(startedEvent(plan, name, nvml.simulated, gpuBytes));
  const recorder = new Recorder(log, config, nowMs, { nvml, sampler });
  recorder.spawned("controller", process.pid);
  recorder.begin();

  const shortest = Math.min(...Object.values(config.deadlines));
  const stoppedDeadlineMs = Math.min(STOPPED_MS.most, Math.max(STOPPED_MS.least, shortest));
  const token = randomBytes(24).toString("hex");
  const bystanders = new Bystanders();
  becomeSubreaper();
  const node = new BatonNode({
    config,
    facts: {
      run: name,
      simulated: nvml.simulated,
      silenceSeconds: stoppedDeadlineMs / 1000 + 5,
      maxModelLength: recipe.engine.maxModelLength,
      logprobSequences: recipe.checks.logprobSequences,
      verifyFrozen: recipe.checks.verifyFrozen,
    },
    socketPath: socket.socketPath,
    token,
    nvml,
    recorder,
    note: (process_, code, message) => log.add({ type: "note", process: process_, code, message }),
  });
  undo.push(() => node.close());
  const interrupt = onInterrupt((signal) => node.feed({ type: "interrupted", signal }));
  undo.push(() => interrupt.remove());
  undo.push(onCrash((error) => node.fail(toBatonError(error).toFields())));

  const children: Child[] = [];
  const heart = new Heart({ node, recorder, children, bystanders, progress, nowMs });
  undo.push(() => heart.stop());
  node.feed({ type: "started" });
  try {
    await launch({
      plan,
      config,
      node,
      recorder,
      children,
      logFile: (file) => folder.file(`logs/${file}`),
      socket,
      token,
      standin,
      stoppedDeadlineMs,
    });
  } catch (error) {
    node.fail(toBatonError(error).toFields());
  }

  const end = await node.ended;
  return finish(end, { config, log, nvml, recorder, node, heart, children, bystanders, stoppedDeadlineMs, interrupt });
}

interface Running {
  readonly config: PhaseConfig;
  readonly log: EventLog;
  readonly nvml: Nvml;
  readonly recorder: Recorder;
  readonly node: BatonNode;
  readonly heart: Heart;
  readonly children: readonly Child[];
  readonly bystanders: Bystanders;
  readonly stoppedDeadlineMs: number;
  readonly interrupt: Interrupt;
}

/** Ends everything, and looks whether it is gone. */
async function finish(end: EndCommand, running: Running): Promise<RunEnd> {
  const { config, log, nvml, recorder, node, heart, children, bystanders, interrupt } = running;
  const failure = await explain(end, {
    nvml,
    ledger: ledgerOf(log.events),
    nameOf: (pid) => nameOf(pid, node, children),
    stopped: heart.stopped(),
    pausedMs: heart.pausedMs(),
    stoppedDeadlineMs: running.stoppedDeadlineMs,
    children,
    ranks: node.server.connections
      .filter(({ client }) => client.role === "rank")
      .map(({ pid }) => ({ ended: () => processInfo(pid)?.ending ?? true })),
  });
  heart.stop();
  const left = await stopEverything({
    failure,
    orderly: end.reason === "finished",
    stopMs: config.deadlines.stopMs,
    server: node.server,
    children,
    bystanders,
    hurry: interrupt.again,
  });
  recorder.finish();
  node.close();
  // Stand-in GPUs are of this run alone; others' processes may be on real ones.
  const isOurs = (pid: number): boolean => (nvml.simulated ? pid !== process.pid : heart.knows(pid));
  const deviceBytes = await leftDeviceBytes(nvml, config.gpus, isOurs);
  log.add({ type: "left", processes: left, deviceBytes });
  return { reason: end.reason, exitCode: end.exitCode, failure, logs: logsOf(failure, children) };
}

/** A process of the run in words: a client, or what is below a guard and has not said hello. */
function nameOf(pid: number, node: BatonNode, children: readonly Child[]): string | null {
  const connection = node.server.connections.find((one) => one.pid === pid);
  if (connection !== undefined) return connection.name;
  for (let info = processInfo(pid); info !== null && info.ppid > 1; info = processInfo(info.ppid)) {
    const child = children.find((one) => one.pid === info?.ppid);
    if (child !== undefined) return `a process of ${child.name === "launcher" ? "the command" : child.name}`;
  }
  return null;
}

/** The logs that may say more about a failure: of the engine that it names, else of the command. */
function logsOf(failure: Failure | null, children: readonly Child[]): string[] {
  if (failure === null) return [];
  const named = children.filter(({ name }) => name !== "launcher" && failure.message.includes(name));
  const chosen = named.length > 0 ? named : children.filter(({ name }) => name === "launcher");
  return chosen.flatMap(({ logPath }) => logPath ?? []);
}
