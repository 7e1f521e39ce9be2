import type { Failure, FromController } from "../protocol/messages.js";
import type { Client } from "./clients.js";

/** Messages that the machine makes whole; the shell only encodes them. */
export type PlainMessage = Extract<
  FromController,
  { type: "release" | "opened" | "resume" | "wake" | "sleep" | "plan" | "sync" }
>;

/** What the node is doing, for the event log, the trace and the progress line. */
export type NodePhase =
  | "start"
  | "train"
  | "arrive"
  | "release"
  | "wake"
  | "plan"
  | "sync"
  | "cache"
  | "generate"
  | "sleep"
  | "resume"
  | "finish"
  | "end";

/** Why a run ended. */
export type EndReason = "finished" | "failed" | "interrupted";

/** What the shell must do, in this order. `rank` is the local rank. */
export type Command =
  | { readonly type: "send"; readonly client: Client; readonly message: PlainMessage }
  /** Answer the hello of this client. A rank gets it, and its arena, when every engine is asleep: it may use its GPU. */
  | { readonly type: "welcome"; readonly client: Client }
  /** Send the manifests of all ranks to this worker as `rankManifest` frames with this seq. */
  | { readonly type: "sendManifests"; readonly engine: number; readonly worker: number; readonly seq: number }
  /** Ask for the segments that the plans of all workers name for this rank (none is fine). */
  | {
      readonly type: "exportSegments";
      readonly rank: number;
      readonly seq: number;
      readonly checksums: boolean;
    }
  /** Send this worker the descriptors its plan names, as `sources` frames, then close those nobody else needs. */
  | {
      readonly type: "sendSources";
      readonly engine: number;
      readonly worker: number;
      readonly seq: number;
      readonly epoch: number;
      readonly compare: boolean;
      readonly checksums: boolean;
    }
  /** Compare the checksums of this engine's workers with those of the ranks; answered by `verified`. */
  | { readonly type: "verifyWeights"; readonly engine: number; readonly epoch: number }
  /** Read the free memory of these GPUs after so many ms; answered by `room` with the same key. */
  | { readonly type: "measureRoom"; readonly key: string; readonly gpus: readonly number[]; readonly afterMs: number }
  /** Gather call `call` of these ranks into one request. */
  | {
      readonly type: "generate";
      readonly engine: number;
      readonly ranks: readonly number[];
      readonly call: number;
      readonly request: number;
      readonly epoch: number;
    }
  /** Scatter the answer to these ranks; request null: the call had no prompt at all. */
  | {
      readonly type: "completions";
      readonly engine: number;
      readonly ranks: readonly number[];
      readonly call: number;
      readonly request: number | null;
      readonly epoch: number;
    }
  /** Replaces a deadline of the same key. */
  | { readonly type: "setDeadline"; readonly key: string; readonly ms: number }
  | { readonly type: "clearDeadline"; readonly key: string }
  /** For the log: the node (client null) or a client is in another phase now. */
  | {
      readonly type: "phaseChanged";
      readonly client: Client | null;
      readonly name: string;
      readonly previous: string;
      /** Number of the handoff, from 1; 0 before the first. */
      readonly handoff: number;
    }
  /** All engines hold the weights of this epoch now. */
  | { readonly type: "epochMoved"; readonly epoch: number }
  /**
   * Always the last command of a run. The shell sends `shutdown` to every client, ends every process within
   * `stopMs`, and exits with `exitCode`. `gpus` are those whose holders belong into the error.
   */
  | {
      readonly type: "end";
      readonly reason: EndReason;
      readonly exitCode: number;
      readonly failure: Failure | null;
      readonly gpus: readonly number[];
      /** The client that reported the failure; null: none did. */
      readonly from: Client | null;
    };
