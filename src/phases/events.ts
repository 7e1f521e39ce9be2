import type { Failure, WakeTag } from "../protocol/messages.js";
import type { Client } from "./clients.js";

/** How a process ended: exactly one is set when it is known. */
export interface ProcessExit {
  readonly code: number | null;
  readonly signal: string | null;
}

/** Free memory of one GPU as NVML shows it; null: not known. */
export interface FreeMemory {
  readonly gpu: number;
  readonly freeBytes: number | null;
}

/**
 * What can happen to a node. The shell makes events from frames, pidfds, timers and NVML; those that carry
 * token ids, checksums or manifests carry only what the state machine decides by. `rank` is the local rank.
 */
export type Event =
  /** The first event of every run. */
  | { readonly type: "started" }
  /** A client connected and its hello was well-formed, with the right token and peer. */
  | {
      readonly type: "hello";
      readonly client: Client;
      /** GPU that it says it computes on (ranks and workers). */
      readonly gpu: number | null;
      /** Ranks of this node, as a rank sees it. */
      readonly localWorldSize: number | null;
    }
  | {
      readonly type: "ready";
      readonly engine: number;
      readonly tensorParallel: number;
      readonly weightBytes: number;
      readonly cacheBytes: number;
    }
  | {
      readonly type: "manifest";
      readonly rank: number;
      /** Equal for two manifests exactly when stage, dtype, names, dtypes and shapes are (`manifestSignature`). */
      readonly signature: string;
      /** Of most of the trainer's tensors, by its name in torch. */
      readonly dtype: string;
      /** What a worker needs to put whole tensors together, as many as it does at a time. */
      readonly scratchBytes: number;
    }
  | { readonly type: "arrived"; readonly rank: number; readonly epoch: number }
  | { readonly type: "released"; readonly rank: number; readonly seq: number; readonly releasedBytes: number }
  /** Answer to `measureRoom`. */
  | { readonly type: "room"; readonly key: string; readonly gpus: readonly FreeMemory[] }
  | { readonly type: "awake"; readonly engine: number; readonly seq: number; readonly tags: readonly WakeTag[] }
  | {
      readonly type: "planned";
      readonly engine: number;
      readonly worker: number;
      readonly seq: number;
      /** Local ranks whose segments this worker maps at a sync. */
      readonly sources: readonly number[];
      readonly fallback: string | null;
    }
  /** The last frame of the answer to `exportSegments`. */
  | { readonly type: "exported"; readonly rank: number; readonly seq: number }
  | {
      readonly type: "synced";
      readonly engine: number;
      readonly worker: number;
      readonly seq: number;
      readonly epoch: number;
      readonly compared: readonly string[] | null;
    }
  /** After `synced`, where the sync was asked for checksums. */
  | { readonly type: "summed"; readonly engine: number; readonly worker: number; readonly seq: number }
  /** Answer to `verifyWeights`; failure null: the checksums agree. */
  | { readonly type: "verified"; readonly engine: number; readonly failure: Failure | null }
  | {
      readonly type: "prompts";
      readonly rank: number;
      readonly call: number;
      /** How many prompts. */
      readonly count: number;
    }
  | {
      readonly type: "progress";
      readonly engine: number;
      readonly request: number;
      readonly finishedSamples: number;
      readonly generatedTokens: number;
    }
  | { readonly type: "generated"; readonly engine: number; readonly request: number; readonly epoch: number }
  | { readonly type: "leave"; readonly rank: number }
  | { readonly type: "asleep"; readonly engine: number; readonly seq: number }
  | { readonly type: "resumed"; readonly rank: number; readonly seq: number }
  | { readonly type: "returned"; readonly rank: number }
  | {
      readonly type: "logprobCheck";
      readonly rank: number;
      readonly epoch: number;
      readonly tokens: number;
      readonly maxDifference: number | null;
      readonly meanDifference: number | null;
    }
  | { readonly type: "goodbye"; readonly client: Client }
  /** A client says that it cannot go on. */
  | { readonly type: "failed"; readonly client: Client; readonly failure: Failure }
  /** The shell found something wrong: a frame that is not valid, prompts that cannot be gathered, … */
  | {
      readonly type: "invalid";
      readonly client: Client | null;
      readonly failure: Failure;
      /** GPUs whose holders belong into the error. */
      readonly gpus?: readonly number[];
    }
  | { readonly type: "processDied"; readonly client: Client; readonly exit: ProcessExit }
  /** The connection of a client ended; every frame it sent before has been given to the machine. */
  | {
      readonly type: "connectionLost";
      readonly client: Client;
      /** Whether the kernel is taking its process apart, or has done so. */
      readonly ending: boolean;
    }
  | { readonly type: "launcherExited"; readonly exit: ProcessExit }
  | { readonly type: "deadlinePassed"; readonly key: string }
  | { readonly type: "interrupted"; readonly signal: string };
