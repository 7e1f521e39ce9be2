/**
 * What node 0 decides for all nodes, as a pure function `(state, event) -> (state, commands)`: who is missing, whether
 * all are alike, whom to tell of a failure, and which failure the run ended of. No clock and no socket in it.
 */
import type { Failure } from "../protocol/messages.js";
import { commandsDiffer } from "./command-words.js";
import { differences } from "./facts.js";
import {
  type Blamed,
  nodeLost,
  nodeMissing,
  nodeTwice,
  notFinished,
  numberTooLarge,
  refusedThere,
  rootOf,
} from "./failures.js";
import type { Facts, FromHub, Report } from "./messages.js";
import { checkWorld, type NodeRanks } from "./world.js";

export interface HubConfig {
  readonly count: number;
  /** Name of the run, for all nodes. */
  readonly run: string;
  readonly meetMs: number;
  /** From the first node that is finished until all are. */
  readonly finishMs: number;
}

/** From the first failure until every node has ended what it had running, which takes it three seconds at most. */
export const STOP_MS = 8_000;
/** From the verdict until every node has sent its report. */
export const REPORT_MS = 10_000;

interface MemberState {
  readonly host: string;
  /** Of its controller. */
  readonly instance: string;
  readonly facts: Facts | null;
  readonly command: readonly string[];
  /** Connected. */
  readonly here: boolean;
  readonly ranks: NodeRanks | null;
  readonly phase: string | null;
  /** Finished or failed by itself. */
  readonly ended: boolean;
  /** Nothing of it runs any more. */
  readonly stopped: boolean;
  readonly report: { readonly folder: string; readonly report: Report } | null;
}

/** `refused`: nobody begins, and whoever comes now hears why. `decided`: the verdict is told, reports are awaited. */
export type HubStage = "meeting" | "refused" | "running" | "decided" | "over";

export interface HubState {
  readonly config: HubConfig;
  readonly stage: HubStage;
  readonly members: ReadonlyMap<number, MemberState>;
  /** In the order in which they came; one a node, and what all have in common. */
  readonly failures: readonly Blamed[];
  /** Hosts of controllers that have another key. */
  readonly strangers: readonly string[];
  /** In stage `refused`: why, and which nodes know it. */
  readonly refusal: { readonly failure: Failure; readonly told: ReadonlySet<number> } | null;
}

export type HubEvent =
  | { readonly type: "started" }
  | { readonly type: "joined"; readonly node: number; readonly host: string; readonly instance: string }
  /** A controller with another key. */
  | { readonly type: "stranger"; readonly host: string }
  | {
      readonly type: "identity";
      readonly node: number;
      readonly facts: Facts;
      readonly command: readonly string[];
    }
  /** This node does not begin; it need not have joined. */
  | { readonly type: "refusal"; readonly node: number; readonly host: string; readonly failure: Failure }
  | { readonly type: "gone"; readonly node: number; readonly found: string }
  | { readonly type: "ranks"; readonly node: number; readonly ranks: NodeRanks }
  | { readonly type: "phase"; readonly node: number; readonly phase: string }
  | { readonly type: "ended"; readonly node: number; readonly failure: Failure | null }
  | { readonly type: "stopped"; readonly node: number; readonly failure: Failure | null }
  | { readonly type: "report"; readonly node: number; readonly folder: string; readonly report: Report }
  | { readonly type: "timeUp"; readonly timer: HubTimer };

export type HubTimer = "meet" | "finish" | "stop" | "report";

export type HubCommand =
  | { readonly type: "send"; readonly node: number; readonly message: FromHub }
  | { readonly type: "setTimer"; readonly timer: HubTimer; readonly ms: number }
  | { readonly type: "clearTimer"; readonly timer: HubTimer };

export interface HubTransition {
  readonly state: HubState;
  readonly commands: readonly HubCommand[];
}

export function newHub(config: HubConfig): HubState {
  return { config, stage: "meeting", members: new Map(), failures: [], strangers: [], refusal: null };
}

/** Whether every node knows that nobody begins. */
export function allAreTold({ config, refusal }: HubState): boolean {
  return refusal !== null && refusal.told.size >= config.count;
}

/** What follows from an event; after `over` nothing does. */
export function hubTransition(state: HubState, event: HubEvent): HubTransition {
  if (state.stage === "over") return { state, commands: [] };
  const step = new Step(state);
  handle(step, event);
  return { state: step.state, commands: step.commands };
}

class Step {
  readonly commands: HubCommand[] = [];
  constructor(public state: HubState) {}

  set(change: Partial<HubState>): void {
    this.state = { ...this.state, ...change };
  }

  member(node: number): MemberState {
    return this.state.members.get(node) ?? newMember("", "");
  }

  change(node: number, change: Partial<MemberState>): void {
    this.set({ members: new Map(this.state.members).set(node, { ...this.member(node), ...change }) });
  }

  send(node: number, message: FromHub): void {
    if (this.member(node).here) this.commands.push({ type: "send", node, message });
  }

  sendAll(message: FromHub): void {
    for (const node of this.state.members.keys()) this.send(node, message);
  }

  setTimer(timer: HubTimer, ms: number): void {
    this.commands.push({ type: "setTimer", timer, ms });
  }

  clearTimer(timer: HubTimer): void {
    this.commands.push({ type: "clearTimer", timer });
  }
}

function newMember(host: string, instance: string): MemberState {
  return {
    ...{ host, instance, facts: null, command: [], here: true },
    ...{ ranks: null, phase: null, ended: false, stopped: false, report: null },
  };
}

type Handlers = {
  readonly [T in HubEvent["type"]]: (step: Step, event: Extract<HubEvent, { type: T }>) => void;
};

const HANDLERS: Handlers = {
  started: (step) => step.setTimer("meet", step.state.config.meetMs),
  joined: onJoined,
  stranger: (step, { host }) => step.set({ strangers: [...new Set([...step.state.strangers, host])].slice(0, 5) }),
  identity: (step, { node, facts, command }) => {
    step.change(node, { facts, command });
    beginIfAllAreHere(step);
  },
  refusal: (step, { node, host, failure }) => {
    // It knows by itself, and if it is connected, this is its answer.
    step.send(node, { type: "refused", failure });
    refuse(step, refusedThere(node, host, failure), [node]);
  },
  gone: (step, { node, found }) => onGone(step, node, found),
  ranks: (step, { node, ranks }) => {
    step.change(node, { ranks });
    compareRanks(step);
  },
  phase: (step, { node, phase }) => onPhase(step, node, phase),
  ended: (step, { node, failure }) => onEnded(step, node, failure),
  stopped: (step, { node, failure }) => onStopped(step, node, failure),
  report: (step, { node, folder, report }) => {
    step.change(node, { report: { folder, report } });
    reportIfAllAreIn(step);
  },
  timeUp: (step, { timer }) => onTimeUp(step, timer),
};

function handle(step: Step, event: HubEvent): void {
  (HANDLERS[event.type] as (step: Step, event: HubEvent) => void)(step, event);
}

function onJoined(step: Step, { node, host, instance }: Extract<HubEvent, { type: "joined" }>): void {
  const { config, members, stage, refusal } = step.state;
  // Once the run is under way it concerns only the stranger, whom the shell sends away.
  if (stage !== "meeting" && stage !== "refused") return;
  const before = members.get(node);
  // A node that lost its connection while it waited comes again, which may be known here later than there. A second
  // controller of its number is another matter.
  const isSecond = before?.here === true && before.instance !== instance;
  if (!isSecond) step.change(node, newMember(host, instance));
  if (refusal !== null) tellRefusal(step, node);
  else if (isSecond) refuse(step, nodeTwice(node, [before.host, host]));
  else if (node >= config.count) refuse(step, numberTooLarge(node, host, config.count));
}

/** Nobody begins. `knowing`: nodes that need not be told. */
function refuse(step: Step, failure: Failure, knowing: readonly number[] = []): void {
  if (step.state.stage !== "meeting") return;
  step.clearTimer("meet");
  step.set({ stage: "refused", refusal: { failure, told: new Set(knowing) } });
  for (const [node, { here }] of step.state.members) if (here && !knowing.includes(node)) tellRefusal(step, node);
}

function tellRefusal(step: Step, node: number): void {
  const { refusal } = step.state;
  if (refusal === null) return;
  step.send(node, { type: "refused", failure: refusal.failure });
  step.set({ refusal: { ...refusal, told: new Set(refusal.told).add(node) } });
}

function beginIfAllAreHere(step: Step): void {
  const { config, members, stage } = step.state;
  if (stage !== "meeting" || missing(step).length > 0) return;
  const inOrder = Array.from({ length: config.count }, (_, node) => members.get(node) ?? newMember("", ""));
  const differing = differences(inOrder.map(({ host, facts }) => ({ host, facts: facts ?? {} })));
  if (differing !== null) {
    refuse(step, differing);
    return;
  }
  step.clearTimer("meet");
  step.set({ stage: "running" });
  step.sendAll({ type: "begin", run: config.run, warning: commandsDiffer(inOrder) });
}

function missing(step: Step): number[] {
  const numbers = Array.from({ length: step.state.config.count }, (_, node) => node);
  return numbers.filter((node) => {
    const member = step.state.members.get(node);
    return member === undefined || !member.here || member.facts === null;
  });
}

function onGone(step: Step, node: number, found: string): void {
  const { stage } = step.state;
  const { ended, stopped } = step.member(node);
  step.change(node, { here: false });
  if (stage === "decided") reportIfAllAreIn(step);
  if (stage !== "running") return;
  const failed = step.state.failures.some((one) => one.node === node);
  // One that failed and is gone before the others are done has said all that it had to say.
  if (!failed && !(ended && stopped)) fail(step, { node, failure: nodeLost(node, found) });
  step.change(node, { ended: true, stopped: true });
  decideIfAllHaveStopped(step);
}

function compareRanks(step: Step): void {
  const { config, members, stage, failures } = step.state;
  if (stage !== "running" || failures.length > 0) return;
  const known = [...members].flatMap(([node, { ranks }]) => (ranks === null ? [] : [{ node, ...ranks }]));
  const failure = checkWorld(config.count, known);
  if (failure !== null) fail(step, { node: null, failure });
}

function onPhase(step: Step, node: number, phase: string): void {
  step.change(node, { phase });
  const { config, members } = step.state;
  const phases = Array.from({ length: config.count }, (_, one) => members.get(one)?.phase ?? null);
  step.send(0, { type: "phases", phases });
}

function onEnded(step: Step, node: number, failure: Failure | null): void {
  if (step.state.stage !== "running" || step.member(node).ended) return;
  const first = ![...step.state.members.values()].some(({ ended }) => ended);
  step.change(node, { ended: true });
  if (failure !== null) fail(step, { node, failure });
  else if (first) step.setTimer("finish", step.state.config.finishMs);
}

/** Tells the others, and lets the time begin in which all must have stopped. */
function fail(step: Step, blamed: Blamed): void {
  if (step.state.failures.length === 0) {
    step.clearTimer("finish");
    step.setTimer("stop", STOP_MS);
  }
  step.set({ failures: [...step.state.failures, blamed] });
  for (const node of step.state.members.keys()) {
    if (node !== blamed.node) step.send(node, { type: "end", node: blamed.node, failure: blamed.failure });
  }
}

function onStopped(step: Step, node: number, failure: Failure | null): void {
  if (step.state.stage !== "running") return;
  onEnded(step, node, failure);
  step.change(node, { stopped: true });
  if (failure !== null) {
    // One that had finished may still fail; and one that failed knows more by now than it did then.
    if (!step.state.failures.some((one) => one.node === node)) fail(step, { node, failure });
    step.set({ failures: step.state.failures.map((one) => (one.node === node ? { node, failure } : one)) });
  }
  decideIfAllHaveStopped(step);
}

function decideIfAllHaveStopped(step: Step): void {
  const { members, stage } = step.state;
  if (stage === "running" && [...members.values()].every(({ stopped }) => stopped)) decide(step);
}

function decide(step: Step): void {
  const root = rootOf(step.state.failures);
  step.clearTimer("finish");
  step.clearTimer("stop");
  step.set({ stage: "decided" });
  step.setTimer("report", REPORT_MS);
  step.sendAll({ type: "verdict", node: root?.node ?? null, failure: root?.failure ?? null });
  reportIfAllAreIn(step);
}

function reportIfAllAreIn(step: Step): void {
  const { members, stage } = step.state;
  if (stage !== "decided" || [...members.values()].some(({ here, report }) => here && report === null)) return;
  report(step);
}

function report(step: Step): void {
  const { config, members } = step.state;
  const nodes = Array.from({ length: config.count }, (_, node) => {
    const member = members.get(node);
    return {
      host: member?.host ?? "",
      folder: member?.report?.folder ?? null,
      report: member?.report?.report ?? null,
    };
  });
  step.clearTimer("report");
  step.send(0, { type: "reports", nodes });
  step.set({ stage: "over" });
}

function onTimeUp(step: Step, timer: HubTimer): void {
  const { config, stage, members, strangers } = step.state;
  if (timer === "meet" && stage === "meeting") {
    refuse(step, nodeMissing(missing(step), config.count, config.meetMs, strangers));
  }
  if (timer === "finish" && stage === "running") {
    const late = [...members].filter(([, { ended }]) => !ended).map(([node]) => node);
    // One that has finished and does not say that it has stopped is waited for no longer.
    if (late.length === 0) decide(step);
    else fail(step, { node: null, failure: notFinished(late, config.finishMs) });
  }
  if (timer === "stop" && stage === "running") decide(step);
  if (timer === "report" && stage === "decided") report(step);
}
