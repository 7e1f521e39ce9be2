/** What clients (ranks, engines, workers) say to the controller. */
import { z } from "zod";
import { binary, bytes, bytesOrUnknown, count, failure, index, sampling, seconds, seq, wakeTag } from "./fields.js";

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
  /**
   * The same of what float32 elements become when they are rounded to bfloat16; 0 for other tensors, and empty when
   * there is none of float32.
   */
  roundedChecksums: binary,
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
  /** Ranks and, for each, the u64 segment numbers that this worker maps at a sync and the bytes that it copies. */
  sources: z.array(z.object({ rank: index, segments: binary, copyBytes: bytes })),
  /** u64 per tensor: elements of it that this worker holds; u64 per tensor: checksum over their indices only. */
  coveredElements: binary,
  coverage: binary,
  /** u32 numbers of the tensors that are float32 on the ranks and that this worker rounds to bfloat16. */
  rounded: binary,
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
  /** Set when this sync was compared with the engine's own load_weights: the parameters that differ. */
  compared: z.union([z.array(z.string()), z.null()]),
});

/** Worker: what its weights add up to, where `sources` asked for it. Comes after `synced`, while the cache may wake. */
export const summed = z.object({
  type: z.literal("summed"),
  /** Of the sync. */
  seq,
  /** u64 per tensor of the manifest, over the elements that this worker holds, read back from its own weights. */
  checksums: binary,
  /** From `synced` until the sums were there. */
  seconds,
});

export const failed = z.object({ type: z.literal("failed"), failure });
export const goodbye = z.object({ type: z.literal("goodbye") });
export const pong = z.object({ type: z.literal("pong"), seq });
