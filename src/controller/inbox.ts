/** Turns what clients say into events for the state machine, and keeps what it does not decide by. */
import { BatonError } from "../errors.js";
import { checkPieces, manifestSignature, scratchBytes } from "../memory/index.js";
import type { Nvml } from "../native.js";
import type { Client, Event, PhaseConfig } from "../phases/index.js";
import type { Manifest } from "../protocol/messages.js";
import { checkGpus } from "./needs.js";
import type { Recorder } from "./recorder.js";
import type { RolloutTraffic } from "./rollouts.js";
import type { Connection, MessageAfterHello } from "./server.js";
import type { WeightTraffic } from "./weights.js";

export interface InboxOptions {
  readonly config: PhaseConfig;
  readonly nvml: Pick<Nvml, "memory" | "simulated">;
  readonly recorder: Recorder;
  readonly note: (process: string, code: string, message: string) => void;
  readonly weights: WeightTraffic;
  readonly rollouts: RolloutTraffic;
  /** Ranks of this node; 0 until it is known. */
  readonly rankCount: () => number;
}

export class Inbox {
  readonly #options: InboxOptions;
  readonly #recorder: Recorder;
  readonly #weights: WeightTraffic;
  readonly #rollouts: RolloutTraffic;
  /** Of each worker, by engine. */
  readonly #engineBytes = new Map<number, { readonly weightBytes: number; readonly cacheBytes: number }>();

  constructor(options: InboxOptions) {
    this.#options = options;
    this.#recorder = options.recorder;
    this.#weights = options.weights;
    this.#rollouts = options.rollouts;
  }

  /**
   * The event that a frame is, or null when it is none. Keeps what the machine does not decide by.
   *
   * @throws BatonError when the frame makes no sense, by itself or with what others said
   */
  eventOf(connection: Connection, message: MessageAfterHello, descriptors: number[]): Event | null {
    const { client } = connection;
    switch (message.type) {
      case "goodbye":
        return { type: "goodbye", client };
      case "failed":
        return { type: "failed", client, failure: message.failure };
      case "pong":
        return null;
      default:
        break;
    }
    if (client.role === "rank") return this.#eventOfRank(connection, message, descriptors);
    if (client.role === "engine") return this.#eventOfEngine(client.index, client, message);
    const { engine, index: worker } = client;
    switch (message.type) {
      case "planned":
        this.#weights.planned(engine, worker, message);
        if (message.fallback !== null) {
          this.#options.note(
            connection.name,
            "LOAD_WEIGHTS",
            `weights go through the engine's own load_weights: ${message.fallback}`,
          );
        }
        this.#recorder.workerEnds(client);
        return {
          type: "planned",
          engine,
          worker,
          seq: message.seq,
          sources: message.sources.map((source) => source.rank),
          fallback: message.fallback,
        };
      case "synced":
        this.#recorder.workerEnds(client);
        if (this.#weights.owesSums(engine, worker)) this.#recorder.workerBegins(client, "summing");
        return {
          type: "synced",
          engine,
          worker,
          seq: message.seq,
          epoch: message.epoch,
          compared: message.compared,
        };
      case "summed":
        this.#weights.summed(engine, worker, message);
        this.#recorder.workerEnds(client);
        return { type: "summed", engine, worker, seq: message.seq };
      default:
        throw unexpected(connection, message.type);
    }
  }

  #eventOfRank(connection: Connection, message: MessageAfterHello, descriptors: number[]): Event | null {
    const rank = connection.client.index;
    switch (message.type) {
      case "manifest":
        return this.#manifest(connection.client, rank, message);
      case "arrive":
        return { type: "arrived", rank, epoch: message.epoch };
      case "released":
        return { type: "released", rank, seq: message.seq, releasedBytes: message.releasedBytes };
      case "exported": {
        const done = this.#weights.exported(rank, message, descriptors);
        return done ? { type: "exported", rank, seq: message.seq } : null;
      }
      case "prompts": {
        const count = this.#rollouts.prompts(rank, connection.hello.index, message);
        return { type: "prompts", rank, call: message.call, count };
      }
      case "leave":
        return { type: "leave", rank };
      case "resumed":
        return { type: "resumed", rank, seq: message.seq };
      case "returned":
        return { type: "returned", rank };
      case "logprobCheck":
        return {
          type: "logprobCheck",
          rank,
          epoch: message.epoch,
          tokens: message.tokens,
          maxDifference: message.maxDifference,
          meanDifference: message.meanDifference,
        };
      case "metrics":
        return null;
      default:
        throw unexpected(connection, message.type);
    }
  }

  #eventOfEngine(engine: number, client: Client, message: MessageAfterHello): Event | null {
    switch (message.type) {
      case "ready": {
        const { tensorParallel, weightBytes, cacheBytes } = message;
        this.#engineBytes.set(engine, { weightBytes, cacheBytes });
        return { type: "ready", engine, tensorParallel, weightBytes, cacheBytes };
      }
      case "awake":
        return { type: "awake", engine, seq: message.seq, tags: message.tags };
      case "asleep":
        return { type: "asleep", engine, seq: message.seq };
      case "progress": {
        const { request, finishedSamples, generatedTokens } = message;
        return { type: "progress", engine, request, finishedSamples, generatedTokens };
      }
      case "generated": {
        const tokens = this.#rollouts.generated(message);
        this.#recorder.figures(client, { generatedTokens: tokens });
        return { type: "generated", engine, request: message.request, epoch: message.epoch };
      }
      default:
        throw unexpectedFrom(`engine ${engine}`, message.type);
    }
  }

  /** Keeps a manifest; when all ranks have sent theirs, checks what they say together. */
  #manifest(client: Client, rank: number, manifest: Manifest): Event {
    const { manifests } = this.#weights;
    const isFirst = !manifests.has(rank);
    this.#weights.manifest(rank, manifest);
    const event: Event = {
      type: "manifest",
      rank,
      signature: manifestSignature(manifest),
      dtype: manifest.dtype,
      scratchBytes: scratchBytes(manifest),
    };
    if (manifests.size < this.#options.rankCount()) return event;
    if (isFirst) this.#recorder.model(manifests);
    const all = [...manifests].sort(([a], [b]) => a - b).map(([index, one]) => ({ rank: index, manifest: one }));
    const wrong = checkPieces(all);
    if (wrong !== null) return { type: "invalid", client, failure: wrong };
    const small = checkGpus(this.#options.config, all, this.#engineBytes, this.#options.nvml);
    return small === null ? event : { type: "invalid", client, failure: small.failure, gpus: [small.gpu] };
  }
}

function unexpected(connection: Connection, type: string): BatonError {
  return unexpectedFrom(connection.name, type);
}

function unexpectedFrom(name: string, type: string): BatonError {
  return new BatonError({
    code: "PROTOCOL_ERROR",
    message: `${name} sent a message that is not of its role.`,
    expected: "a message of its role",
    found: type,
    action: "Use the same version of Baton in every process of the run.",
  });
}
