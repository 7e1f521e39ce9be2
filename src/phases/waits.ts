import type { Client } from "./clients.js";
import { type Deadlines, engineGpus, engineOfRank } from "./config.js";
import type { EngineState, Life, RankState, State } from "./state.js";

/**
 * How long a lost connection may wait for the pidfd to say why, and a death for the frames that were sent
 * before it. Short enough that a death is reported within a second.
 */
export const GRACE_MS = 250;

/** Something from outside that the machine waits for. */
export interface Wait {
  /** Names the wait for the shell's timers and for `deadlinePassed`. */
  readonly key: string;
  /** The same wait at another time: it has a deadline of its own. */
  readonly occurrence: number;
  readonly ms: number;
  /** The setting of the recipe that `ms` comes from; null when it is not one. */
  readonly setting: keyof Deadlines | null;
  /** Who has not done it; empty when it is nobody that Baton knows yet, NVML, or the controller. */
  readonly clients: readonly Client[];
  /** What is awaited, after "did not": "release memory". */
  readonly what: string;
}

/**
 * Everything that the machine waits for from outside, and how long at most.
 *
 * The deadlines that the shell keeps are made from this list after every event, so a state cannot wait without
 * one; what a state does wait for without being in this list is found by the property tests.
 */
export function waits(state: State): Wait[] {
  const list: Wait[] = [];
  if (state.ended !== null) return list;
  const add = (
    key: string,
    occurrence: number,
    setting: keyof Deadlines | null,
    clients: readonly Client[],
    what: string,
  ): void => {
    const ms = setting === null ? GRACE_MS : state.config.deadlines[setting];
    list.push({ key, occurrence, ms, setting, clients, what });
  };

  if (state.launcher !== null) add("launcher", 0, null, unfinished(state), "say goodbye before the command ended");
  addNode(state, add);
  for (const rank of state.ranks) addRank(rank, add);
  for (const engine of state.engines) addEngine(state, engine, add);
  return list;
}

type Add = (
  key: string,
  occurrence: number,
  setting: keyof Deadlines | null,
  clients: readonly Client[],
  what: string,
) => void;

/** Waits of the whole node: for its clients to start, to train, to arrive, to finish. */
function addNode(state: State, add: Add): void {
  if (state.phase === "start") {
    add("start", 0, "startMs", missingAtStart(state), "become ready");
    return;
  }
  if (state.inHandoff) return;
  const arrived = state.ranks.some((rank) => rank.phase === "arrived");
  if (arrived) {
    const late = state.ranks.filter((rank) => rank.phase !== "arrived" || !rank.returned);
    add("arrive", state.handoff, "arriveMs", late.map(asClient), "arrive at the handoff");
  } else if (state.ranks.some((rank) => rank.phase === "finished")) {
    add("finish", 0, "trainMs", unfinished(state), "finish");
  } else {
    add("train", state.handoff, "trainMs", state.ranks.map(asClient), "arrive at a handoff");
  }
}

function addRank(rank: RankState, add: Add): void {
  if (rank.phase !== "finished") addLife(rank.life, asClient(rank), add); // else it may go
  const key = `rank ${rank.index}`;
  switch (rank.phase) {
    case "releasing":
    case "releasingAll":
      add(`release: ${key}`, rank.seq, "releaseMs", [asClient(rank)], "release memory");
      break;
    case "exporting":
      add(`export: ${key}`, rank.seq, "syncMs", [asClient(rank)], "export its segments");
      break;
    case "resuming":
      add(`resume: ${key}`, rank.seq, "resumeMs", [asClient(rank)], "take its memory back");
      break;
    case "left":
      if (rank.room) add(`room: ${key}`, rank.room.number, "roomMs", [], "become free");
      break;
  }
}

function addEngine(state: State, engine: EngineState, add: Add): void {
  const client: Client = { role: "engine", index: engine.index };
  addLife(engine.life, client, add);
  for (const worker of engine.workers) {
    addLife(worker.life, { role: "worker", engine: engine.index, index: worker.index }, add);
  }
  const key = `engine ${engine.index}`;
  const late = (): Client[] =>
    engine.workers
      .filter((worker) => !worker.answered)
      .map((worker) => ({ role: "worker", engine: engine.index, index: worker.index }));
  addVerification(engine, add);
  switch (engine.stage) {
    case "roomForWeights":
    case "roomForCache":
      // Room can be expected once everybody who was asked has given back.
      if (engine.room && !releasesBeside(state, engine))
        add(`room: ${key}`, engine.room.number, "roomMs", [], "become free");
      break;
    case "wakingWeights":
      add(`wake: ${key}`, engine.seq, "wakeMs", [client], "wake its weights");
      break;
    case "wakingCache":
      add(`wake: ${key}`, engine.seq, "wakeMs", [client], "wake its cache");
      break;
    case "planning":
      add(`plan: ${key}`, engine.seq, "planMs", late(), "make a copy plan");
      break;
    case "syncing":
      add(`sync: ${key}`, engine.seq, "syncMs", late(), "take the weights");
      break;
    case "open":
      addRollout(state, engine, add);
      break;
    case "generating":
      add(`generate: ${key}`, engine.progress, "generateIdleMs", [client], "generate a token");
      break;
    case "sleeping":
      add(`sleep: ${key}`, engine.seq, "sleepMs", [client], "go to sleep");
      break;
  }
}

/** Beside whatever the engine does until it opens. */
function addVerification(engine: EngineState, add: Add): void {
  const key = `engine ${engine.index}`;
  if (engine.proof === "verdict") {
    add(`verify: ${key}`, engine.sumsSeq, "syncMs", [], `compare the weights of ${key}`);
  }
  if (engine.proof !== "sums") return;
  for (const { index, answered, summed } of engine.workers) {
    if (!answered || summed) continue;
    const worker: Client = { role: "worker", engine: engine.index, index };
    add(`sums: ${key} worker ${index}`, engine.sumsSeq, "syncMs", [worker], "sum its weights up");
  }
}

/** A rank on one of this engine's GPUs is giving memory back. */
export function releasesBeside(state: State, engine: EngineState): boolean {
  return engineGpus(state.config, engine.index).some((gpu) => {
    const phase = state.ranks[gpu]?.phase;
    return phase === "releasing" || phase === "releasingAll";
  });
}

/** The engine is open and idle: its ranks think, or some of them are late for a call or for leaving. */
function addRollout(state: State, engine: EngineState, add: Add): void {
  const group = groupOf(state, engine.index);
  const idle = group.filter((rank) => rank.phase === "open" && !rank.prompted);
  if (idle.length === 0) return;
  const begun = group.some((rank) => rank.prompted || rank.left);
  const calls = Math.max(...group.map((rank) => rank.calls));
  // Even: between calls; odd: a call or a leave has begun.
  const occurrence = 2 * (state.handoff * 2 ** 20 + calls) + (begun ? 1 : 0);
  add(
    `rollout: engine ${engine.index}`,
    occurrence,
    begun ? "arriveMs" : "rolloutMs",
    idle.map(asClient),
    begun ? "generate or leave with the other ranks" : "generate or leave",
  );
}

function addLife(life: Life, client: Client, add: Add): void {
  if (life.connected && (life.lost || life.died !== null)) {
    const name =
      client.role === "worker" ? `engine ${client.engine} worker ${client.index}` : `${client.role} ${client.index}`;
    add(`gone: ${name}`, 0, null, [client], life.died ? "close its connection" : "end");
  }
}

export const asClient = (rank: RankState): Client => ({ role: "rank", index: rank.index });

/** Ranks whose prompts engine `engine` answers. */
export function groupOf(state: State, engine: number): RankState[] {
  return state.ranks.filter((rank) => engineOfRank(state.config, state.ranks.length, rank.index) === engine);
}

function unfinished(state: State): Client[] {
  return state.ranks.filter((rank) => rank.phase !== "finished").map(asClient);
}

/** Who is not where training can begin. */
export function missingAtStart(state: State): Client[] {
  const missing: Client[] = [];
  for (const engine of state.engines) {
    if (!engine.ready) missing.push({ role: "engine", index: engine.index });
    for (const worker of engine.workers) {
      if (!worker.life.connected) missing.push({ role: "worker", engine: engine.index, index: worker.index });
    }
  }
  for (const rank of state.ranks) {
    if (rank.manifest === null && rank.phase !== "finished") missing.push(asClient(rank));
  }
  return missing;
}
