/** What the controller says to its clients. */
import { z } from "zod";
import { manifest } from "./client.js";
import {
  binary,
  bytes,
  bytesOrUnknown,
  count,
  failure,
  index,
  releaseStage,
  sampling,
  seconds,
  seq,
  wakeTag,
} from "./fields.js";

export const welcome = z.object({
  type: z.literal("welcome"),
  protocol: z.int(),
  run: z.string(),
  simulated: z.boolean(),
  /** Longest silence of the controller, in a wait of the client, before the client gives up. */
  silenceSeconds: seconds,
  engines: count,
  tensorParallel: count,
  /** Longest prompt plus completion that the engines can take, in tokens. */
  maxModelLength: z.int().min(1),
  /** For ranks: on how many sequences to compare logprobs after a sync; 0: on none. */
  logprobSequences: count,
  /** Verify frozen segments on the first so many resumes. */
  verifyFrozen: count,
});

/**
 * To a rank, right after its welcome: an empty memfd as one descriptor, and how large it may grow; and what the weights
 * of an engine take, all its workers together, null where there is no engine.
 */
export const arena = z.object({ type: z.literal("arena"), arenaBytes: bytes, weightBytes: bytesOrUnknown });

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
  /** Whether `summed` must follow `synced`. */
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
