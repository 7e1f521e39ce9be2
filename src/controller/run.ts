/** A whole run of this node: from nothing to nothing left, with its reports. */
import { randomBytes } from "node:crypto";
import { toBatonError } from "../errors.js";
import { becomeSubreaper, monotonicNs, type Nvml, processInfo } from "../native.js";
import type { Member } from "../nodes/index.js";
import { interrupted } from "../phases/failures.js";
import type { EndReason, NodePhase, PhaseConfig } from "../phases/index.js";
import type { Failure } from "../protocol/messages.js";
import { phaseConfig, type Recipe } from "../recipe/index.js";
import { EventLog, eventsOf, type StartedEvent } from "../report/events.js";
import { ledgerOf } from "../report/ledger.js";
import type { NodeResult } from "../report/nodes.js";
import type { Progress } from "../report/progress.js";
import type { Summary } from "../report/summary.js";
import { addNodes, writeReports } from "../report/write.js";
import type { Child } from "./children.js";
import { Bystanders } from "./ending.js";
import { explain } from "./explain.js";
import { makeSocketFolder, type RunFolder, type SocketFolder, socketParent, takeRunFolder } from "./folders.js";
import { type Gpus, openGpus } from "./gpus.js";
import { Heart } from "./heart.js";
import { launch } from "./launch.js";
import type { MemberEnd } from "./lost-peer.js";
import { BatonNode, type EndCommand } from "./node.js";
import { meetNodes, type NodesPlan, RankNumbers } from "./nodes.js";
import { removeSharedMemory, sweep } from "./ownership.js";
import { Recorder } from "./recorder.js";
import type { Connection } from "./server.js";
import { type Interrupt, onCrash, onInterrupt } from "./signals.js";
import { sharedMemoryFolder } from "./standin.js";
import { leftDeviceBytes, stopEverything } from "./stop.js";

export interface RunPlan {
  /** Of Baton. */
  readonly version: string;
  /** `engine.model` absolute; has passed `checkStart`. */
  readonly recipe: Recipe;
  /** This node among several; null: there is one. */
  readonly nodes: NodesPlan | null;
  /** The command that starts the ranks. */
  readonly command: readonly string[];
  /** Absolute path of DIR, which is this node's own. */
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
    const member = plan.nodes === null ? null : await meet(plan, plan.nodes, undo);
    const { ready, folder } = await takeAll(plan, member, undo);
    const log = new EventLog(folder.file("events.jsonl"), nowMs);
    undo.push(() => log.close());
    const own = await run(plan, { ...ready, member }, folder, log, undo).catch((error: unknown) =>
      notBegun(plan, { ...ready, member }, log, error),
    );
    const end = member === null ? own : await endTogether(own, member, log);
    log.add({ type: "exit", reason: end.reason, code: end.exitCode, failure: end.failure });
    const written = writeReports(log.events, folder);
    const results = await member?.report(folder.path, { ...written });
    const summary = results ? addNodes(written, results as unknown as NodeResult[], folder) : written;
    return { exitCode: end.exitCode, failure: end.failure, logs: end.logs, summary };
  } finally {
    for (const step of undo.reverse()) step();
  }
}

async function meet(plan: RunPlan, nodes: NodesPlan, undo: (() => void)[]): Promise<Member> {
  const member = await meetNodes(nodes, plan.recipe, (line) => plan.progress.line(line), undo);
  member.onPhases = (phases) => plan.progress.nodes(phases);
  return member;
}

/** What can be refused on this node alone: then the others are told. */
async function takeAll(
  plan: RunPlan,
  member: Member | null,
  undo: (() => void)[],
): Promise<{ readonly ready: Ready; readonly folder: RunFolder }> {
  try {
    const ready = await prepare(plan, undo);
    const folder = takeRunFolder(plan.out);
    undo.push(() => folder.release());
    return { ready, folder };
  } catch (error) {
    await member?.verdict(toBatonError(error).toFields());
    throw error;
  }
}

/** The end of this node, as the end of all: what the run ended of is the same everywhere. */
async function endTogether(own: RunEnd, member: Member, log: EventLog): Promise<RunEnd> {
  const failure = await member.verdict(own.failure);
  if (failure === null || own.reason === "interrupted") return own;
  if (own.failure !== null && own.failure.code !== failure.code) {
    const { code, message, found } = own.failure;
    log.add({ type: "note", process: "controller", code, message: `on this node: ${message} (${found})` });
  }
  const isOwn = own.failure?.code === failure.code;
  return { reason: "failed", exitCode: own.exitCode || 1, failure, logs: isOwn ? own.logs : [] };
}

/** What a run has before it takes DIR: everything that can be refused without a process of its own. */
interface Ready extends Gpus {
  readonly name: string;
  readonly socket: SocketFolder;
}

interface Begun extends Ready {
  readonly member: Member | null;
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
function notBegun(plan: RunPlan, begun: Begun, log: EventLog, error: unknown): RunEnd {
  if (!log.events.some(({ type }) => type === "started")) log.add(startedEvent(plan, begun, []));
  return { reason: "failed", exitCode: 1, failure: toBatonError(error).toFields(), logs: [] };
}

function startedEvent(plan: RunPlan, { name, nvml, member }: Begun, gpuBytes: readonly number[]): StartedEvent {
  const config = phaseConfig(plan.recipe);
  const { nodes } = plan;
  return {
    type: "started",
    run: name,
    version: plan.version,
    simulated: nvml.simulated,
    topology: {
      gpus: config.gpus,
      ranks: config.ranks ?? 0,
      engines: config.engines,
      tensorParallel: config.tensorParallel,
      zeroStage: null,
    },
    gpuBytes,
    command: plan.command,
    ...(nodes === null || member === null
      ? {}
      : { nodes: { run: member.run, node: nodes.place.rank, count: nodes.place.count } }),
  };
}

async function run(
  plan: RunPlan,
  begun: Begun,
  folder: RunFolder,
  log: EventLog,
  undo: (() => void)[],
): Promise<RunEnd> {
  const { recipe, progress } = plan;
  const { name, socket, nvml, sampler, standin, member } = begun;
  const config = phaseConfig(recipe);
  const gpuBytes = Array.from({ length: config.gpus }, (_, gpu) => nvml.memory(gpu).totalBytes);
  log.onEvent((event) => progress.show(event));
  if (member !== null) log.onEvent((event) => event.type === "phase" && member.phase(event.to));
  log.add(startedEvent(plan, begun, gpuBytes));
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
    rankNumbers: new RankNumbers(member === null ? null : (ranks) => member.ranks(ranks)),
    recorder,
    note: (process_, code, message) => log.add({ type: "note", process: process_, code, message }),
  });
  undo.push(() => node.close());
  void node.ended.then(({ failure }) => member?.ended(failure));
  member?.onFailure((failure) => node.fail(failure));
  const interrupt = onInterrupt((signal) => {
    node.feed({ type: "interrupted", signal });
    member?.interrupted(interrupted(signal));
  });
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
    members: membersOf(node.server.connections),
    phase: lastPhase(log),
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

/** Ranks and workers. A worker may live in its engine's process, which then speaks for it. */
function membersOf(connections: readonly Connection[]): MemberEnd[] {
  return connections
    .filter(({ client }) => client.role !== "engine")
    .map((one) => ({
      client: one.client,
      ended: () => processInfo(one.pid)?.ending ?? true,
      exit: () => one.exit,
      spoke: () => connections.some(({ pid, spoke }) => pid === one.pid && spoke),
    }));
}

/** The phase that the run ended in. */
function lastPhase(log: EventLog): NodePhase {
  const before = eventsOf(log.events, "phase").filter(({ to }) => to !== "end");
  return (before.at(-1)?.to ?? "start") as NodePhase;
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

/** Failures that no log of this node says more about. */
const OF_OTHERS: ReadonlySet<string> = new Set(["NODE_FAILED", "NODE_LOST"]);

/** The logs that may say more about a failure: of the engine that it names, else of the command. */
function logsOf(failure: Failure | null, children: readonly Child[]): string[] {
  if (failure === null || OF_OTHERS.has(failure.code)) return [];
  const named = children.filter(({ name }) => name !== "launcher" && failure.message.includes(name));
  const chosen = named.length > 0 ? named : children.filter(({ name }) => name === "launcher");
  return chosen.flatMap(({ logPath }) => logPath ?? []);
}
