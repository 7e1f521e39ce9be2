/**
 * Every message between the controller and its clients (ranks, engines, workers), once, for both languages:
 * `npm run protocol` turns these schemas into `python/src/baton/protocol/messages.py`.
 *
 * A frame is an 8-byte header (u32 payload length, u8 version, u8 descriptor count, u16 zero; little-endian)
 * and a MessagePack map with a `type`. Integer arrays travel as little-endian binary: `u32s` and `u64s`.
 * Times are in seconds (`…Seconds`, floating point), sizes in bytes (`…Bytes`).
 */
import { z } from "zod";

export const PROTOCOL_VERSION = 1;

const index = z.int().min(0);
const count = z.int().min(0);
const bytes = z.int().min(0);
const seconds = z.number().min(0);
/** A byte count that may not be known. */
const bytesOrUnknown = z.union([bytes, z.null()]);
const binary = z.custom<Uint8Array>((value) => value instanceof Uint8Array, { error: "expected binary" });
/** Numbers every command of the controller; a reply carries the number of its command. */
const seq = z.int().min(1);

export const wakeTag = z.enum(["weights", "kv_cache"]);
export const releaseStage = z.enum(["optimizer", "all"]);

export const sampling = z.object({
  n: z.int().min(1),
  temperature: z.number().min(0),
  topP: z.number().gt(0).max(1),
  maxTokens: z.int().min(1),
  stopTokenIds: z.array(z.int().min(0)),
  /** null: drawn by the controller. Sample k of prompt p uses a stream of its own derived from it. */
  seed: z.union([z.int().min(0), z.null()]),
});

/** What went wrong, in the words that the user will read. */
export const failure = z.object({
  code: z.string(),
  message: z.string(),
  expected: z.string(),
  found: z.string(),
  action: z.string(),
});

// ---- client -> controller ------------------------------------------------------------------------------

/** First frame of a connection. Fields that do not apply to a role are null. */
export const hello = z.object({
  type: z.literal("hello"),
  protocol: z.int(),
  token: z.string(),
  role: z.enum(["rank", "engine", "worker"]),
  pid: z.int().min(1),
  /** Rank (global), engine index, or tensor-parallel rank within the engine. */
  index,
  /** Rank: LOCAL_RANK, which is also its GPU. */
  localRank: z.union([index, z.null()]),
  worldSize: z.union([count, z.null()]),
  localWorldSize: z.union([count, z.null()]),
  /** Worker: its engine. */
  engine: z.union([index, z.null()]),
  /** Rank and worker: the GPU it computes on. */
  gpu: z.union([index, z.null()]),
  version: z.string(),
});

/** Rank, after `attach` (and again whenever addresses or names changed): what lies where. */
export const manifest = z.object({
  type: z.literal("manifest"),
  zeroStage: z.int().min(0).max(3),
  dtype: z.enum(["float32", "bfloat16", "float16"]),
  segmentBytes: bytes,
  /** Tensors of the policy by Hugging Face name, in the same order on every rank. */
  names: z.array(z.string()),
  dtypes: z.array(z.string()),
  shapes: z.array(z.array(count)),
  /** Pieces that this rank holds: tensor index (u32), first element, elements, byte offset in the pool (u64). */
  pieceTensor: binary,
  pieceStart: binary,
  pieceElements: binary,
  pieceOffset: binary,
  /** By the stage's formula: parameters + masters + moments of this rank. */
  stateBytes: bytes,
  /** Host memory that a pause of this rank needs at most. */
  arenaBytes: bytes,
});

/** Rank: at the handoff, after optimizer step `epoch`. */
export const arrive = z.object({
  type: z.literal("arrive"),
  epoch: index,
});

export const released = z.object({
  type: z.literal("released"),
  seq,
  releasedBytes: bytes,
  savedBytes: bytes,
  cleanBytes: bytes,
  deadBytes: bytes,
  keptBytes: bytes,
  /** Training memory on the GPU that could not be put into the pool, by owner. */
  outsideBytes: bytes,
  seconds,
  simulatedSeconds: z.union([seconds, z.null()]),
});

/** Rank: the segments asked for, one descriptor each. Several frames when there are many; `last` ends them. */
export const exported = z.object({
  type: z.literal("exported"),
  seq,
  /** u64 segment numbers, in the order of the descriptors. */
  segments: binary,
  /** u64 checksum per tensor of the manifest over this rank's pieces; empty unless `last`, or when not asked for. */
  checksums: binary,
  last: z.boolean(),
});

/** Rank: its prompts. Collective over the ranks of a tensor-parallel group; an empty list is fine. */
export const prompts = z.object({
  type: z.literal("prompts"),
  /** Counts the calls of this rollout from 0; all ranks of a group must agree. */
  call: index,
  /** u32 token ids of all prompts, one after another. */
  tokens: binary,
  /** u32 length of each prompt. */
  lengths: binary,
  sampling,
});

/** Rank: wants to train again. */
export const leave = z.object({ type: z.literal("leave") });

/** Rank: parameters are back; `pendingBytes` still stream in. */
export const resumed = z.object({
  type: z.literal("resumed"),
  seq,
  copiedBytes: bytes,
  pendingBytes: bytes,
  seconds,
  simulatedSeconds: z.union([seconds, z.null()]),
});

/** Rank: everything is back. */
export const returned = z.object({
  type: z.literal("returned"),
  copiedBytes: bytes,
  /** How long the training had to wait for it. */
  waitedSeconds: seconds,
  seconds,
});

/** Rank: trainer against engine on the same tokens, after a sync. null: no token to compare. */
export const logprobCheck = z.object({
  type: z.literal("logprobCheck"),
  epoch: index,
  tokens: count,
  maxDifference: z.union([z.number(), z.null()]),
  meanDifference: z.union([z.number(), z.null()]),
});

/** Rank: figures of a training step for the progress line and the report (reward, loss, heldOut, …). */
export const metrics = z.object({
  type: z.literal("metrics"),
  step: index,
  /** null: the figure is not finite. */
  values: z.record(z.string(), z.union([z.number(), z.null()])),
});

/** Engine: loaded, its workers connected, plan recorded; asleep. */
export const ready = z.object({
  type: z.literal("ready"),
  tensorParallel: z.int().min(1),
  dtype: z.enum(["float32", "bfloat16", "float16"]),
  /** For each worker. */
  weightBytes: bytes,
  cacheBytes: bytes,
  maxModelLength: z.int().min(1),
  vocabularySize: z.int().min(1),
});

export const awake = z.object({
  type: z.literal("awake"),
  seq,
  tags: z.array(wakeTag),
  seconds,
});

export const asleep = z.object({
  type: z.literal("asleep"),
  seq,
  /** What the engine says it still holds on each of its GPUs, by tensor-parallel rank. */
  leftBytes: z.array(bytesOrUnknown),
  seconds,
});

/** Engine: it is making progress on a request (the deadline while generating runs from the last one). */
export const progress = z.object({
  type: z.literal("progress"),
  request: index,
  finishedSamples: count,
  generatedTokens: count,
});

/** Engine: the answer to a `generate`, all samples, ordered by prompt, then by sample. */
export const generated = z.object({
  type: z.literal("generated"),
  request: index,
  /** The epoch of the weights that made them. */
  epoch: index,
  /** u32 token ids, one completion after another; u32 lengths; f32 logprob of each token. */
  tokens: binary,
  lengths: binary,
  logprobs: binary,
  /** u8 per completion: 0 stop token, 1 length. */
  finish: binary,
  seconds,
});

/** Worker: the copy plan from the manifests. */
export const planned = z.object({
  type: z.literal("planned"),
  seq,
  /** null, or why the engine's own load_weights will be used. */
  fallback: z.union([z.string(), z.null()]),
  runs: count,
  copyBytes: bytes,
  /** Ranks and, for each, the u64 segment numbers that this worker maps at a sync. */
  sources: z.array(z.object({ rank: index, segments: binary })),
  /** u64 per tensor: elements of it that this worker holds; u64 per tensor: checksum over their indices only. */
  coveredElements: binary,
  coverage: binary,
});

export const synced = z.object({
  type: z.literal("synced"),
  seq,
  epoch: index,
  copiedBytes: bytes,
  runs: count,
  mapSeconds: seconds,
  copySeconds: seconds,
  unmapSeconds: seconds,
  simulatedSeconds: z.union([seconds, z.null()]),
  /**
   * u64 per tensor of the manifest, over the elements that this worker holds, read back from its own weights;
   * empty when not asked for.
   */
  checksums: binary,
  /** Set when this sync was compared with the engine's own load_weights: the parameters that differ. */
  compared: z.union([z.array(z.string()), z.null()]),
});

export const failed = z.object({ type: z.literal("failed"), failure });
export const goodbye = z.object({ type: z.literal("goodbye") });
export const pong = z.object({ type: z.literal("pong"), seq });

// ---- controller -> client ------------------------------------------------------------------------------

export const welcome = z.object({
  type: z.literal("welcome"),
  protocol: z.int(),
  run: z.string(),
  simulated: z.boolean(),
  /** Longest silence of the controller, in a wait of the client, before the client gives up. */
  silenceSeconds: seconds,
  engines: count,
  tensorParallel: count,
  /** For ranks: on how many sequences to compare logprobs after a sync; 0: on none. */
  logprobSequences: count,
  /** Verify frozen segments on the first so many resumes. */
  verifyFrozen: count,
});

/** To a rank, right after its welcome: an empty memfd as one descriptor, and how large it may grow. */
export const arena = z.object({ type: z.literal("arena"), arenaBytes: bytes });

/** To a rank: stage "optimizer" keeps the parameters; wantBytes null: everything that the stage allows. */
export const release = z.object({
  type: z.literal("release"),
  seq,
  stage: releaseStage,
  wantBytes: bytesOrUnknown,
});

/** To a rank: export these segments (u64; there may be none) and, when asked for, checksum your pieces. */
export const exportSegments = z.object({
  type: z.literal("exportSegments"),
  seq,
  segments: binary,
  checksums: z.boolean(),
});

/** To a rank: the engines are awake with the weights of `epoch`; generate may be called. */
export const opened = z.object({ type: z.literal("opened"), epoch: index });

/** To a rank: its own completions in its own order; fields as in `generated`. */
export const completions = z.object({
  type: z.literal("completions"),
  call: index,
  epoch: index,
  tokens: binary,
  lengths: binary,
  logprobs: binary,
  finish: binary,
});

/** To a rank: the engine on its GPU is asleep and the room is there. */
export const resume = z.object({ type: z.literal("resume"), seq });

export const wake = z.object({ type: z.literal("wake"), seq, tags: z.array(wakeTag) });
export const sleep = z.object({ type: z.literal("sleep"), seq, level: z.int().min(1).max(2) });

/** To an engine: make every worker take its `manifests` (plan) or `sources` (sync) frames from its own connection. */
export const plan = z.object({ type: z.literal("plan"), seq });
export const sync = z.object({ type: z.literal("sync"), seq, epoch: index, compare: z.boolean() });

/** To a worker: the manifest of one rank; `last` ends the list. Answered by `planned`. */
export const rankManifest = z.object({
  type: z.literal("rankManifest"),
  seq,
  rank: index,
  gpu: index,
  last: z.boolean(),
  manifest,
});

/** To a worker: segments of one rank's pool, one descriptor each; `last` ends the list. Answered by `synced`. */
export const sources = z.object({
  type: z.literal("sources"),
  seq,
  epoch: index,
  rank: index,
  segmentBytes: bytes,
  segments: binary,
  compare: z.boolean(),
  /** Whether `synced` must carry checksums. */
  checksums: z.boolean(),
  last: z.boolean(),
});

export const generate = z.object({
  type: z.literal("generate"),
  request: index,
  epoch: index,
  tokens: binary,
  lengths: binary,
  sampling,
  /** u32 per prompt: how many samples (identical prompts of a group are sent once, with their samples added). */
  samples: binary,
  /** u32 per prompt: number that seeds its samples, whatever engine or batch it is in. */
  streams: binary,
});

export const ping = z.object({ type: z.literal("ping"), seq });
/** The run is over; failure null: in order. */
export const shutdown = z.object({
  type: z.literal("shutdown"),
  failure: z.union([failure, z.null()]),
});

export const fromClient = z.discriminatedUnion("type", [
  hello,
  manifest,
  arrive,
  released,
  exported,
  prompts,
  leave,
  resumed,
  returned,
  logprobCheck,
  metrics,
  ready,
  awake,
  asleep,
  progress,
  generated,
  planned,
  synced,
  failed,
  goodbye,
  pong,
]);
export const fromController = z.discriminatedUnion("type", [
  welcome,
  arena,
  release,
  exportSegments,
  opened,
  completions,
  resume,
  wake,
  sleep,
  plan,
  sync,
  rankManifest,
  sources,
  generate,
  ping,
  shutdown,
]);

export type FromClient = z.infer<typeof fromClient>;
export type FromController = z.infer<typeof fromController>;
export type Sampling = z.infer<typeof sampling>;
export type Failure = z.infer<typeof failure>;
export type Manifest = z.infer<typeof manifest>;
export type WakeTag = z.infer<typeof wakeTag>;
