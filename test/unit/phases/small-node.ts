/** A node of four GPUs that is fed by hand, event by event. */
import {
  type Client,
  type Command,
  clientName,
  type Event,
  initialState,
  type PhaseConfig,
  type State,
  transition,
} from "../../../src/phases/index.js";
import { phaseConfig, recipeFrom } from "../../../src/recipe/index.js";

export const config = (changes: Partial<PhaseConfig> = {}): PhaseConfig => ({
  ...phaseConfig(recipeFrom({ engine: { model: "m", engines: 2, tensorParallel: 2 }, gpus: { count: 4 } }, "/")),
  ...changes,
});

/** Of now: every event gives another. */
export let state: State;
/** What the node was told to do since `forget`. */
export let all: Command[];

/** Feeds events; gives what the node was told to do, in short. */
export function feed(...events: Event[]): string[] {
  const said: string[] = [];
  for (const event of events) {
    const next = transition(state, event);
    state = next.state;
    all.push(...next.commands);
    said.push(...next.commands.flatMap(brief));
  }
  return said;
}

function brief(command: Command): string[] {
  switch (command.type) {
    case "setDeadline":
    case "clearDeadline":
    case "phaseChanged":
      return [];
    case "send": {
      const { type, ...rest } = command.message;
      const detail = [
        "stage" in rest ? rest.stage : [],
        "tags" in rest ? rest.tags : [],
        "level" in rest ? `${rest.level}` : [],
      ].flat();
      return [[clientName(command.client), type, ...detail].join(" ")];
    }
    case "welcome":
      return [`${clientName(command.client)} welcome`];
    case "measureRoom":
      return [`measure ${command.gpus.join(",")}`];
    case "end":
      return [`end ${command.reason} ${command.failure?.code ?? ""}`.trim()];
    default: {
      const { type, ...rest } = command as { type: string; engine?: number; worker?: number; rank?: number };
      const who = [
        rest.engine === undefined ? [] : `engine ${rest.engine}`,
        rest.worker === undefined ? [] : `worker ${rest.worker}`,
        rest.rank === undefined ? [] : `rank ${rest.rank}`,
      ].flat();
      return [[...who, type].join(" ")];
    }
  }
}

export const ranks = [0, 1, 2, 3];
export const engines = [0, 1];
const seqOf = (client: Client): number => {
  if (client.role === "rank") return state.ranks[client.index]?.seq ?? 0;
  return state.engines[client.role === "engine" ? client.index : client.engine]?.seq ?? 0;
};
export const rankSeq = (rank: number): number => seqOf({ role: "rank", index: rank });
export const engineSeq = (engine: number): number => seqOf({ role: "engine", index: engine });
/** Of the sync that an engine's sums are of. */
export const sumsSeq = (engine: number): number => state.engines[engine]?.sumsSeq ?? -1;

export function forget(): void {
  all = [];
}

/** A node of two engines with two workers each, and four ranks that have all said what they have. */
export function start(changes: Partial<PhaseConfig> = {}, dtype = "bfloat16", scratchBytes = 0): void {
  state = initialState(config(changes));
  all = [];
  feed({ type: "started" });
  for (const engine of engines) {
    feed({ type: "hello", client: { role: "engine", index: engine }, gpu: null, localWorldSize: null });
    for (const worker of [0, 1]) {
      const client: Client = { role: "worker", engine, index: worker };
      feed({ type: "hello", client, gpu: 2 * engine + worker, localWorldSize: null });
    }
    feed({ type: "ready", engine, tensorParallel: 2, weightBytes: 10, cacheBytes: 20 });
  }
  for (const rank of ranks) {
    feed({ type: "hello", client: { role: "rank", index: rank }, gpu: rank, localWorldSize: 4 });
    feed({ type: "manifest", rank, signature: "s", dtype, scratchBytes });
  }
}

export const arrive = (epoch = 1): Event[] => ranks.map((rank) => ({ type: "arrived", rank, epoch }));
export const release = (rank: number, releasedBytes = 5): Event => ({
  type: "released",
  rank,
  seq: rankSeq(rank),
  releasedBytes,
});
export const room = (freeBytes: number): Event[] =>
  all.flatMap((command): Event[] =>
    command.type === "measureRoom"
      ? [{ type: "room", key: command.key, gpus: command.gpus.map((gpu) => ({ gpu, freeBytes })) }]
      : [],
  );

export const synced = (engine: number, worker: number): Event => ({
  ...{ type: "synced", engine, worker },
  ...{ seq: engineSeq(engine), epoch: 1, compared: [] },
});
export const summed = (engine: number, worker: number): Event => ({
  ...{ type: "summed", engine, worker },
  seq: sumsSeq(engine),
});

/** All the way until every engine takes the weights; each rank gave back so much for them. */
export function beginSync(releasedBytes = 5): void {
  feed(...arrive());
  feed(...ranks.map((rank) => release(rank, releasedBytes)));
  feed(...room(10));
  for (const engine of engines) feed({ type: "awake", engine, seq: engineSeq(engine), tags: ["weights"] });
  for (const engine of engines) {
    for (const worker of [0, 1]) {
      feed({ type: "planned", engine, worker, seq: engineSeq(engine), sources: ranks, fallback: null });
    }
  }
  feed(...ranks.map((rank): Event => ({ type: "exported", rank, seq: rankSeq(rank) })));
}

/** All the way until every engine has its weights. */
export function syncAll(releasedBytes = 5): void {
  beginSync(releasedBytes);
  for (const engine of engines) {
    for (const worker of [0, 1]) feed(synced(engine, worker));
    for (const worker of [0, 1]) feed(summed(engine, worker));
    feed({ type: "verified", engine, failure: null });
  }
}

/** All the way until every engine is open. */
export function openAll(): void {
  syncAll();
  feed(...ranks.map((rank) => release(rank)));
  feed(...room(20));
  for (const engine of engines) feed({ type: "awake", engine, seq: engineSeq(engine), tags: ["kv_cache"] });
}
