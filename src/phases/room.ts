/** Room on a GPU: measured by NVML before anybody maps memory there, never assumed. */

import { engineGpus } from "./config.js";
import type { Event, FreeMemory } from "./events.js";
import type { EngineState, RankState, RoomWait, State } from "./state.js";
import type { Step } from "./step.js";
import { asClient, releasesBeside } from "./waits.js";

const RETRY_FIRST_MS = 1;
const RETRY_LAST_MS = 50;

/** Asks for the next measurement of a wait, the later the longer it goes on. */
function measure(step: Step, role: "engine" | "rank", owner: RoomOwner, gpus: readonly number[]): void {
  const { room } = owner;
  if (room === null || room.asked) return;
  owner.room = { ...room, asked: true };
  const afterMs = room.attempts === 0 ? 0 : Math.min(RETRY_FIRST_MS * 2 ** (room.attempts - 1), RETRY_LAST_MS);
  step.command({ type: "measureRoom", key: roomKey(role, owner.index, room), gpus, afterMs });
}

interface RoomOwner {
  readonly index: number;
  room: RoomWait | null;
}

/** Starts or goes on with measuring for an engine that is about to wake. */
export function advanceEngineRoom(step: Step, engine: EngineState): void {
  // What they give back now would only be seen by the measurement after it.
  if (releasesBeside(step.state, engine)) return;
  measure(step, "engine", engine, engineGpus(step.state.config, engine.index));
}

export function advanceRankRoom(step: Step, rank: RankState): void {
  measure(step, "rank", rank, [rank.index]);
}

/** Tells measurements of different waits apart: one that comes late answers nobody. */
function roomKey(role: "engine" | "rank", index: number, room: RoomWait): string {
  return `${role} ${index} #${room.number}`;
}

export function onRoom(step: Step, event: Extract<Event, { type: "room" }>): void {
  for (const engine of step.state.engines) {
    if (engine.room?.asked && event.key === roomKey("engine", engine.index, engine.room)) {
      onEngineRoom(step, engine, engine.room, event.gpus);
    }
  }
  for (const rank of step.state.ranks) {
    if (rank.room?.asked && event.key === roomKey("rank", rank.index, rank.room)) {
      onRankRoom(step, rank, rank.room, event.gpus);
    }
  }
}

function onEngineRoom(step: Step, engine: EngineState, room: RoomWait, measured: readonly FreeMemory[]): void {
  const forWeights = engine.stage === "roomForWeights";
  const gpus = engineGpus(step.state.config, engine.index);
  engine.room = noteMeasurement(room, gpus, (gpu) => neededBytes(step.state, engine, gpu), measured);
  if (engine.room !== null) {
    if (step.state.config.release === "needed") askForRoom(step, engine, engine.room, measured);
    return;
  }
  engine.seq = step.seq();
  engine.stage = forWeights ? "wakingWeights" : "wakingCache";
  step.send(
    { role: "engine", index: engine.index },
    { type: "wake", seq: engine.seq, tags: [forWeights ? "weights" : "kv_cache"] },
  );
  // Whoever was not asked to give anything back is past that stage now.
  for (const rank of step.ranksBeside(engine)) {
    if (forWeights && rank.phase === "arrived") rank.phase = "released";
    if (!forWeights && rank.phase === "exported") rank.phase = "closed";
  }
}

/** What an engine that waits for room needs on one of its GPUs. */
function neededBytes(state: State, engine: EngineState, gpu: number): number {
  if (engine.stage === "roomForWeights") return engine.weightBytes + scratchBytes(state, engine);
  return Math.max(engine.cacheBytes, laterBytes(state, engine, gpu));
}

/**
 * What a worker takes besides while its weights are awake: whole tensors of the trainer for `load_weights`, which is
 * watched or compared with in the first sync, and used in all of them where copies cannot do it.
 */
function scratchBytes(state: State, engine: EngineState): number {
  const loads = engine.syncs === 0 || !engine.planned || engine.workers.some(({ fallback }) => fallback !== null);
  return loads ? Math.max(0, ...state.ranks.map((rank) => rank.scratchBytes)) : 0;
}

/**
 * What must be free beside the engine's weights so that the rank there finds room for all it gave back when the engine
 * sleeps again. Asked for before the cache wakes: what an engine keeps for good is known then, and nothing is generated.
 */
function laterBytes(state: State, engine: EngineState, gpu: number): number {
  return (state.ranks[gpu]?.releasedBytes ?? 0) - engine.weightBytes;
}

/** Release as needed: each rank beside the engine gives back what its GPU lacks, once a stage. */
function askForRoom(step: Step, engine: EngineState, room: RoomWait, measured: readonly FreeMemory[]): void {
  const forWeights = engine.stage === "roomForWeights";
  const needBytes = forWeights ? neededBytes(step.state, engine, 0) : engine.cacheBytes;
  for (const rank of step.ranksBeside(engine)) {
    if (!room.gpus.includes(rank.index) || rank.phase !== (forWeights ? "arrived" : "exported")) continue;
    const freeBytes = measured.find(({ gpu }) => gpu === rank.index)?.freeBytes ?? null;
    // Free memory that is not known: all that the stage allows.
    const wantBytes = freeBytes === null ? null : needBytes - freeBytes;
    release(step, rank, forWeights ? "optimizer" : "all", wantBytes);
  }
}

/** Asks a rank to give memory back. */
export function release(step: Step, rank: RankState, stage: "optimizer" | "all", wantBytes: number | null): void {
  rank.seq = step.seq();
  rank.phase = stage === "optimizer" ? "releasing" : "releasingAll";
  step.send(asClient(rank), { type: "release", seq: rank.seq, stage, wantBytes });
}

function onRankRoom(step: Step, rank: RankState, room: RoomWait, measured: readonly FreeMemory[]): void {
  rank.room = noteMeasurement(room, [rank.index], () => rank.releasedBytes, measured);
  if (rank.room === null) resume(step, rank);
}

/** Tells a rank to take its memory back. */
export function resume(step: Step, rank: RankState): void {
  rank.seq = step.seq();
  rank.phase = "resuming";
  rank.returned = false;
  step.send(asClient(rank), { type: "resume", seq: rank.seq });
}

/** The wait after this measurement; null when there is room on all GPUs. Memory that is not known is not room. */
function noteMeasurement(
  room: RoomWait,
  gpus: readonly number[],
  needBytes: (gpu: number) => number,
  measured: readonly FreeMemory[],
): RoomWait | null {
  const lacking = gpus.flatMap((gpu) => {
    const freeBytes = measured.find((one) => one.gpu === gpu)?.freeBytes ?? null;
    return freeBytes !== null && freeBytes >= needBytes(gpu) ? [] : [{ gpu, freeBytes }];
  });
  if (lacking.length === 0) return null;
  return {
    number: room.number,
    attempts: room.attempts + 1,
    asked: false,
    gpus: lacking.map(({ gpu }) => gpu),
    lacking: lacking
      .map(({ gpu, freeBytes }) => `GPU ${gpu} has ${freeBytes ?? "an unknown number of"} bytes free`)
      .join(", "),
  };
}

/** Room that was given back, or should have been, never showed. */
export function onNoRoom(step: Step, key: string): void {
  const engine = step.state.engines.find((one) => one.room && key === `room: engine ${one.index}`);
  const rank = step.state.ranks.find((one) => one.room && key === `room: rank ${one.index}`);
  if (engine?.room) noRoom(step, engine.room, engineGpus(step.state.config, engine.index), missingOf(step, engine));
  if (rank?.room) {
    const who = `rank ${rank.index} to take its memory back`;
    noRoom(step, rank.room, [rank.index], { who, needBytes: rank.releasedBytes });
  }
}

interface Missing {
  readonly who: string;
  readonly needBytes: number;
}

/** What an engine lacks room for: its own memory, or what a rank gave back for it and will want again. */
function missingOf({ state }: Step, engine: EngineState): Missing {
  if (engine.stage === "roomForWeights") {
    return { who: `the weights of engine ${engine.index}`, needBytes: engine.weightBytes };
  }
  const cache = { who: `the cache of engine ${engine.index}`, needBytes: engine.cacheBytes };
  const later = (engine.room?.gpus ?? []).map((gpu) => ({
    who: `rank ${gpu} to take its memory back once engine ${engine.index} sleeps again`,
    needBytes: laterBytes(state, engine, gpu),
  }));
  return later.reduce<Missing>((most, one) => (one.needBytes > most.needBytes ? one : most), cache);
}

function noRoom(step: Step, room: RoomWait, all: readonly number[], { who, needBytes }: Missing): never {
  const gpus = room.gpus.length > 0 ? room.gpus : all;
  step.fail(
    {
      code: "ROOM_NOT_AVAILABLE",
      message: `there is no room for ${who}`,
      expected: `${needBytes} bytes free on GPU ${gpus.join(", ")} within ${step.state.config.deadlines.roomMs} ms`,
      found: room.lacking === "" ? "no measurement" : room.lacking,
      action:
        "Free what holds the memory, make engine.cacheBytes or the training state smaller, use larger GPUs or more " +
        "tensor parallelism, or `release: needed` where both fit side by side.",
    },
    gpus,
  );
}
