/** The whole state machine as one pure function. */
import type { Client } from "./clients.js";
import {
  onConnectionLost,
  onFailed,
  onGone,
  onGoodbye,
  onHello,
  onLauncherGone,
  onProcessDied,
  onReady,
} from "./clients-events.js";
import type { Command, NodePhase } from "./commands.js";
import {
  onAsleep,
  onAwake,
  onGenerated,
  onPlanned,
  onProgress,
  onSummed,
  onSynced,
  onVerified,
} from "./engine-events.js";
import type { Event } from "./events.js";
import { deadlinePassed, interrupted, Trouble } from "./failures.js";
import { advance } from "./handoff.js";
import {
  onArrived,
  onExported,
  onLeave,
  onLogprobCheck,
  onManifest,
  onPrompts,
  onReleased,
  onResumed,
  onReturned,
} from "./rank-events.js";
import { onNoRoom, onRoom } from "./room.js";
import { type ArmedDeadline, draftOf, type State } from "./state.js";
import { Step } from "./step.js";
import { missingAtStart, waits } from "./waits.js";

export { GRACE_MS } from "./waits.js";

/** The new state, and what must be done now, in order. */
export interface Transition {
  readonly state: State;
  readonly commands: readonly Command[];
}

/**
 * What follows from an event. `state` is not changed.
 *
 * Whatever does not belong where the run is ends it: the last command is then `end`, and after it no event has
 * any effect.
 */
export function transition(state: State, event: Event): Transition {
  if (state.ended !== null) return { state, commands: [] };
  const step = new Step(draftOf(state));
  try {
    handle(step, event);
    if (step.state.ended === null) advance(step);
    step.state.phase = phaseOf(step.state);
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    return end(state, event, error);
  }
  const commands = [...phaseChanges(state, step.state), ...step.commands];
  if (step.state.ended === null) armDeadlines(step.state, commands);
  return { state: step.state, commands };
}

type Handlers = {
  readonly [T in Event["type"]]: (step: Step, event: Extract<Event, { type: T }>) => void;
};

const HANDLERS: Handlers = {
  started: () => {},
  hello: onHello,
  ready: onReady,
  manifest: onManifest,
  arrived: onArrived,
  released: onReleased,
  room: onRoom,
  awake: onAwake,
  planned: onPlanned,
  exported: onExported,
  synced: onSynced,
  summed: onSummed,
  verified: onVerified,
  prompts: onPrompts,
  progress: onProgress,
  generated: onGenerated,
  leave: onLeave,
  asleep: onAsleep,
  resumed: onResumed,
  returned: onReturned,
  logprobCheck: onLogprobCheck,
  goodbye: (step, event) => {
    onGoodbye(step, event);
    finishIfDone(step);
  },
  failed: (step, event) => onFailed(step, event.client, event.failure),
  invalid: (step, event) => step.fail(event.failure, event.gpus),
  processDied: onProcessDied,
  connectionLost: onConnectionLost,
  launcherExited: (step, event) => {
    step.state.launcher = event.exit;
    finishIfDone(step);
  },
  deadlinePassed: (step, event) => onDeadlinePassed(step, event.key),
  interrupted: (step, event) => step.fail(interrupted(event.signal)),
};

function handle(step: Step, event: Event): void {
  (HANDLERS[event.type] as (step: Step, event: Event) => void)(step, event);
}

/** The run is over in good order when every rank said goodbye and the command ended without an error. */
function finishIfDone(step: Step): void {
  const { launcher, ranks } = step.state;
  if (launcher?.code !== 0 || ranks.length === 0 || ranks.some((rank) => rank.phase !== "finished")) return;
  step.state.ended = "finished";
  step.command({ type: "end", reason: "finished", exitCode: 0, failure: null, gpus: [], from: null });
}

function onDeadlinePassed(step: Step, key: string): void {
  const wait = waits(step.state).find((one) => one.key === key);
  if (wait === undefined) return; // it ended while the timer fired
  if (key === "launcher") onLauncherGone(step);
  if (key.startsWith("gone: ")) onGone(step, wait.clients[0] as Client);
  if (key.startsWith("room: ")) onNoRoom(step, key);
  step.fail(deadlinePassed(wait));
}

/** 128 and the number of the signal, as a shell tells it. */
function interruptedCode(signal: string): number {
  return 128 + ({ SIGHUP: 1, SIGTERM: 15 }[signal] ?? 2);
}

/** The run ends by an error: nothing else is commanded, whatever this event had set in motion. */
function end(state: State, event: Event, trouble: Trouble): Transition {
  const reason = event.type === "interrupted" ? "interrupted" : "failed";
  const launcherCode = trouble.failure.code === "LAUNCHER_FAILED" ? (state.launcher?.code ?? 1) : 1;
  const exitCode = event.type === "interrupted" ? interruptedCode(event.signal) : launcherCode;
  const from = event.type === "failed" ? event.client : null;
  const ended: State = { ...state, phase: "end", ended: reason, deadlines: [] };
  return {
    state: ended,
    commands: [
      ...phaseChanges(state, ended),
      { type: "end", reason, exitCode, failure: trouble.failure, gpus: trouble.gpus, from },
    ],
  };
}

/** Sets the deadlines of waits that are new, clears those of waits that are over. */
function armDeadlines(state: State, commands: Command[]): void {
  const before = state.deadlines;
  const now = waits(state);
  const armed: ArmedDeadline[] = [];
  for (const wait of now) {
    armed.push({ key: wait.key, occurrence: wait.occurrence });
    if (before.some((one) => one.key === wait.key && one.occurrence === wait.occurrence)) continue;
    commands.push({ type: "setDeadline", key: wait.key, ms: wait.ms });
  }
  for (const one of before) {
    if (!now.some((wait) => wait.key === one.key)) commands.push({ type: "clearDeadline", key: one.key });
  }
  state.deadlines = armed;
}

/** The least advanced part of the node says what the node is doing. */
function phaseOf(state: State): NodePhase {
  if (state.ended !== null) return "end";
  if (state.phase === "start" && (state.ranks.length === 0 || missingAtStart(state).length > 0)) return "start";
  if (!state.inHandoff) {
    if (state.ranks.some((rank) => rank.phase === "arrived")) return "arrive";
    return state.ranks.some((rank) => rank.phase === "finished") ? "finish" : "train";
  }
  const stages = new Set(
    state.engines.map((engine) => (engine.stage === "asleep" && engine.done ? "done" : engine.stage)),
  );
  const has = (...some: string[]): boolean => some.some((stage) => stages.has(stage as never));
  if (has("asleep", "roomForWeights")) return "release";
  if (has("wakingWeights")) return "wake";
  if (has("weightsAwake", "planning")) return "plan";
  if (has("planned", "syncing")) return "sync";
  if (has("synced", "roomForCache", "wakingCache", "verifying")) return "cache";
  if (has("open", "generating")) return "generate";
  if (has("sleeping")) return "sleep";
  return "resume";
}

/** The event log's view of a transition: who is in another phase than before. */
function phaseChanges(before: State, after: State): Command[] {
  const changes: Command[] = [];
  const note = (client: Client | null, previous: string, name: string): void => {
    if (name !== previous) changes.push({ type: "phaseChanged", client, name, previous, handoff: after.handoff });
  };
  note(null, before.phase, after.phase);
  for (const rank of after.ranks) {
    note({ role: "rank", index: rank.index }, before.ranks[rank.index]?.phase ?? "absent", rank.phase);
  }
  for (const engine of after.engines) {
    note({ role: "engine", index: engine.index }, before.engines[engine.index]?.stage ?? "absent", engine.stage);
  }
  return changes;
}
