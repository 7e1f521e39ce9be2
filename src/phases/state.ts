import type { EndReason, NodePhase } from "./commands.js";
import type { PhaseConfig } from "./config.js";
import type { ProcessExit } from "./events.js";

/** Where a rank is. The name is also its phase in the event log. */
export type RankPhase =
  | "absent"
  /** Said hello; its welcome waits until every engine is asleep. */
  | "connected"
  /** Welcomed; its manifest is awaited. */
  | "attaching"
  | "train"
  | "arrived"
  /** Giving back what the engine's weights need. */
  | "releasing"
  | "released"
  /** Exporting its segments and summing its pieces. */
  | "exporting"
  | "exported"
  /** Giving back the rest. */
  | "releasingAll"
  /** Has given back what it must; waits for the engine of its group. */
  | "closed"
  /** May call generate. */
  | "open"
  | "left"
  | "resuming"
  /** Said goodbye in good order. */
  | "finished";

/** Where an engine is. The name is also its phase in the event log. */
export type EngineStage =
  | "absent"
  | "connected"
  | "asleep"
  | "roomForWeights"
  | "wakingWeights"
  | "weightsAwake"
  | "planning"
  | "planned"
  | "syncing"
  | "synced"
  | "roomForCache"
  | "wakingCache"
  | "verifying"
  | "open"
  | "generating"
  | "sleeping";

/** The life of a client as far as pidfd and connection tell. Replaced, never changed. */
export interface Life {
  /** It said hello. */
  readonly connected: boolean;
  /** Its connection ended. */
  readonly lost: boolean;
  /** When the connection was lost the kernel was taking the process apart already. */
  readonly ending: boolean;
  readonly died: ProcessExit | null;
}

/** Room that is being waited for. Replaced, never changed. */
export interface RoomWait {
  /** Counts the waits, so that each has a deadline of its own. */
  readonly number: number;
  /** Measurements taken in this wait. */
  readonly attempts: number;
  /** A measurement was asked for and has not come. */
  readonly asked: boolean;
  /** For the error: what the last measurement lacked. */
  readonly lacking: string;
  /** GPUs that lacked room in the last measurement. */
  readonly gpus: readonly number[];
}

export interface RankState {
  readonly index: number;
  life: Life;
  phase: RankPhase;
  /** Signature of its manifest. */
  manifest: string | null;
  /** Of its tensors, as the manifest says. */
  dtype: string | null;
  /** What a worker needs to put whole tensors of its manifest together, as many as it does at a time. */
  scratchBytes: number;
  /** Epoch that it arrived with. */
  epoch: number;
  /** Number of the command that it has to answer. */
  seq: number;
  /** Takes part in the handoff that is going on. */
  inHandoff: boolean;
  /** Has exported in this handoff: its sums are known. */
  exported: boolean;
  /** Bytes that it gave back in this handoff and needs again. */
  releasedBytes: number;
  /** Has left this rollout; it may be anywhere after that. */
  left: boolean;
  /** Calls of generate that it made in this rollout. */
  calls: number;
  /** It waits for the completions of its last call. */
  prompted: boolean;
  /** How many prompts that call has. */
  prompts: number;
  /** Everything is back, optimizer state too. */
  returned: boolean;
  room: RoomWait | null;
}

export interface WorkerState {
  readonly index: number;
  life: Life;
  /** Has answered the command that its engine is at. */
  answered: boolean;
  /** Has said what its weights add up to, since its last sync. */
  summed: boolean;
  /** Ranks whose segments it maps at a sync. */
  sources: readonly number[];
  fallback: string | null;
}

export interface EngineState {
  readonly index: number;
  life: Life;
  workers: WorkerState[];
  stage: EngineStage;
  /** Its `ready` has come (its workers may say hello after it). */
  ready: boolean;
  /** For each worker. */
  weightBytes: number;
  cacheBytes: number;
  /** Its workers have a copy plan for the present manifests. */
  planned: boolean;
  /** Syncs by the present plan. */
  syncs: number;
  /** Epoch of its weights; null while it has none. */
  epoch: number | null;
  seq: number;
  /** This sync is compared with the engine's own load_weights. */
  compare: boolean;
  /** What is still missing of the proof that its weights of this handoff are the trainer's; null: nothing. */
  proof: "sums" | "verdict" | null;
  /** Number of the sync that the sums are of. */
  sumsSeq: number;
  /** Has slept in this handoff, or had nothing to do in it yet. */
  done: boolean;
  request: number;
  /** Finished samples and generated tokens as last reported for this request. */
  finishedSamples: number;
  generatedTokens: number;
  /** Counts reports that brought something new; each one restarts the deadline. */
  progress: number;
  room: RoomWait | null;
}

/** Differences of logprobs, added up. Replaced, never changed. */
export interface Compared {
  readonly tokens: number;
  readonly difference: number;
}

/** A deadline as the shell was told: of which wait, and of which occurrence of it. */
export interface ArmedDeadline {
  readonly key: string;
  readonly occurrence: number;
}

/** Everything the machine knows. Only `transition` makes a new one; nothing else may change it. */
export interface State {
  readonly config: PhaseConfig;
  phase: NodePhase;
  /** Empty until the number of ranks is known. */
  ranks: RankState[];
  engines: EngineState[];
  /** The handoff that is going on, from the last arrival until every rank has resumed. */
  inHandoff: boolean;
  /** Handoffs begun. */
  handoff: number;
  /** Optimizer step of the handoff that is going on, or of the last one. */
  epoch: number;
  /** Epoch whose weights all engines have been given; null before the first sync. */
  weightEpoch: number | null;
  /** A manifest came since the last handoff began: plans are made anew in the next one. */
  manifestsChanged: boolean;
  /** The ranks of this handoff sum their pieces and every sync is verified. */
  checksums: boolean;
  /** Tokens on which trainer and engine were compared lately, and the sum of their differences. */
  compared: Compared;
  launcher: ProcessExit | null;
  nextSeq: number;
  nextRequest: number;
  nextRoomWait: number;
  deadlines: readonly ArmedDeadline[];
  ended: EndReason | null;
}

const UNBORN: Life = { connected: false, lost: false, ending: false, died: null };

export function newRank(index: number): RankState {
  return {
    index,
    life: UNBORN,
    phase: "absent",
    manifest: null,
    dtype: null,
    scratchBytes: 0,
    epoch: 0,
    seq: 0,
    inHandoff: false,
    exported: false,
    releasedBytes: 0,
    left: false,
    calls: 0,
    prompted: false,
    prompts: 0,
    returned: true,
    room: null,
  };
}

function newEngine(index: number, tensorParallel: number): EngineState {
  return {
    index,
    life: UNBORN,
    workers: Array.from({ length: tensorParallel }, (_, worker) => ({
      index: worker,
      life: UNBORN,
      answered: false,
      summed: false,
      sources: [],
      fallback: null,
    })),
    stage: "absent",
    ready: false,
    weightBytes: 0,
    cacheBytes: 0,
    planned: false,
    syncs: 0,
    epoch: null,
    seq: 0,
    compare: false,
    proof: null,
    sumsSeq: 0,
    done: true,
    request: 0,
    finishedSamples: 0,
    generatedTokens: 0,
    progress: 0,
    room: null,
  };
}

/** A run in which nothing has happened yet. Feed it `{ type: "started" }` to arm the first deadline. */
export function initialState(config: PhaseConfig): State {
  return {
    config,
    phase: "start",
    ranks: Array.from({ length: config.ranks ?? 0 }, (_, index) => newRank(index)),
    engines: Array.from({ length: config.engines }, (_, index) => newEngine(index, config.tensorParallel)),
    inHandoff: false,
    handoff: 0,
    epoch: 0,
    weightEpoch: null,
    manifestsChanged: true,
    checksums: false,
    compared: { tokens: 0, difference: 0 },
    launcher: null,
    nextSeq: 1,
    nextRequest: 0,
    nextRoomWait: 1,
    deadlines: [],
    ended: null,
  };
}

/**
 * A copy that may be changed without touching `state`. Every message passes here, so it matters that objects
 * written out are copied many times faster than `{ ...object }` once V8 has seen a few shapes of them.
 */
export function draftOf(state: State): State {
  return {
    config: state.config,
    phase: state.phase,
    ranks: state.ranks.map(copyRank),
    engines: state.engines.map(copyEngine),
    inHandoff: state.inHandoff,
    handoff: state.handoff,
    epoch: state.epoch,
    weightEpoch: state.weightEpoch,
    manifestsChanged: state.manifestsChanged,
    checksums: state.checksums,
    compared: state.compared,
    launcher: state.launcher,
    nextSeq: state.nextSeq,
    nextRequest: state.nextRequest,
    nextRoomWait: state.nextRoomWait,
    deadlines: state.deadlines,
    ended: state.ended,
  };
}

function copyRank(rank: RankState): RankState {
  return {
    index: rank.index,
    life: rank.life,
    phase: rank.phase,
    manifest: rank.manifest,
    dtype: rank.dtype,
    scratchBytes: rank.scratchBytes,
    epoch: rank.epoch,
    seq: rank.seq,
    inHandoff: rank.inHandoff,
    exported: rank.exported,
    releasedBytes: rank.releasedBytes,
    left: rank.left,
    calls: rank.calls,
    prompted: rank.prompted,
    prompts: rank.prompts,
    returned: rank.returned,
    room: rank.room,
  };
}

function copyWorker(worker: WorkerState): WorkerState {
  return {
    index: worker.index,
    life: worker.life,
    answered: worker.answered,
    summed: worker.summed,
    sources: worker.sources,
    fallback: worker.fallback,
  };
}

function copyEngine(engine: EngineState): EngineState {
  return {
    index: engine.index,
    life: engine.life,
    workers: engine.workers.map(copyWorker),
    stage: engine.stage,
    ready: engine.ready,
    weightBytes: engine.weightBytes,
    cacheBytes: engine.cacheBytes,
    planned: engine.planned,
    syncs: engine.syncs,
    epoch: engine.epoch,
    seq: engine.seq,
    compare: engine.compare,
    proof: engine.proof,
    sumsSeq: engine.sumsSeq,
    done: engine.done,
    request: engine.request,
    finishedSamples: engine.finishedSamples,
    generatedTokens: engine.generatedTokens,
    progress: engine.progress,
    room: engine.room,
  };
}
