/**
 * Writes down what happens as events for the reports: phases of the node, one slice for each phase of each client
 * (with the figures of its answers), and the answers that the summary is computed from.
 */
import type { Nvml, Sampler } from "../native.js";
import { type Client, clientName } from "../phases/clients.js";
import type { NodePhase } from "../phases/commands.js";
import { engineGpus, type PhaseConfig } from "../phases/config.js";
import type { ProcessExit } from "../phases/events.js";
import type { FromClient, Manifest } from "../protocol/messages.js";
import type { EventLog } from "../report/events.js";
import { phaseDeadlineMs } from "./patience.js";
import type { Connection } from "./server.js";

type Figures = Record<string, number | string | null>;

interface Slice {
  readonly name: string;
  readonly startMs: number;
  readonly nodePhase: string;
  readonly figures: Figures;
}

export interface MemorySource {
  readonly nvml: Pick<Nvml, "memory" | "deviceCount">;
  readonly sampler: Pick<Sampler, "peaks" | "resetPeaks">;
}

export class Recorder {
  readonly #log: EventLog;
  readonly #config: PhaseConfig;
  readonly #nowMs: () => number;
  readonly #memory: MemorySource;
  readonly #slices = new Map<string, Slice>();
  #phase: NodePhase = "start";
  #handoff = 0;
  #epoch: number | null = null;

  constructor(log: EventLog, config: PhaseConfig, nowMs: () => number, memory: MemorySource) {
    this.#log = log;
    this.#config = config;
    this.#nowMs = nowMs;
    this.#memory = memory;
  }

  get phase(): NodePhase {
    return this.#phase;
  }

  get handoff(): number {
    return this.#handoff;
  }

  /** The node begins: its first phase. */
  begin(): void {
    this.#log.add({
      type: "phase",
      from: null,
      to: this.#phase,
      handoff: 0,
      epoch: null,
      deadlineMs: phaseDeadlineMs(this.#config.deadlines, this.#phase),
    });
  }

  connected(connection: Connection): void {
    const { client } = connection;
    this.#log.add({
      type: "process",
      process: connection.name,
      pid: connection.pid,
      gpu: gpuOf(this.#config, client),
      what: "connected",
      exitCode: null,
      signal: null,
    });
  }

  exited(process: string, pid: number, exit: ProcessExit): void {
    this.#log.add({
      type: "process",
      process,
      pid,
      gpu: null,
      what: "exited",
      exitCode: exit.code,
      signal: exit.signal,
    });
  }

  spawned(process: string, pid: number): void {
    this.#log.add({ type: "process", process, pid, gpu: null, what: "spawned", exitCode: null, signal: null });
  }

  /** What the ranks train, once all of them have said so. */
  model(manifests: ReadonlyMap<number, Manifest>): void {
    const first = manifests.get(0);
    if (first === undefined) return;
    const elements = first.shapes.map((shape) => shape.reduce((product, extent) => product * extent, 1));
    this.#log.add({
      type: "model",
      zeroStage: first.zeroStage,
      dtype: first.dtype,
      tensors: first.names.length,
      elements: elements.reduce((sum, count) => sum + count, 0),
      stateBytes: [...manifests].sort(([a], [b]) => a - b).map(([, manifest]) => manifest.stateBytes),
    });
  }

  /** The weights of one engine were compared with the trainer's. */
  checked(engine: number, epoch: number, passed: number, failed: number): void {
    this.#log.add({ type: "checked", engine, epoch, passed, failed });
  }

  /** A client (null: the node) is in another phase. `handoff` from 1, 0 before the first. */
  phaseChanged(client: Client | null, name: string, handoff: number): void {
    if (client !== null) {
      this.#clientPhase(clientName(client), name);
      return;
    }
    this.memory();
    const from = this.#phase;
    this.#phase = name as NodePhase;
    this.#handoff = handoff;
    this.#log.add({
      type: "phase",
      from,
      to: name,
      handoff,
      epoch: this.#epoch,
      deadlineMs: phaseDeadlineMs(this.#config.deadlines, this.#phase),
    });
  }

  epochMoved(epoch: number): void {
    this.#epoch = epoch;
  }

  /** What a worker does: its engine's phase says it for the state machine, its own track shows it by itself. */
  workerBegins(client: Client, name: string): void {
    this.#clientPhase(clientName(client), name);
  }

  workerEnds(client: Client): void {
    this.#clientPhase(clientName(client), null);
  }

  /** Adds figures to what a client is doing now; they are shown in the trace. */
  figures(client: Client, figures: Figures): void {
    const slice = this.#slices.get(clientName(client));
    if (slice !== undefined) Object.assign(slice.figures, figures);
  }

  /** Memory in use now, and the most since the last time, under the phase that is going on. */
  memory(): void {
    const { nvml, sampler } = this.#memory;
    const usedBytes = Array.from({ length: this.#config.gpus }, (_, gpu) => nvml.memory(gpu).usedBytes);
    const peaks = sampler.peaks();
    const peakBytes = usedBytes.map((bytes, gpu) => Math.max(bytes, peaks[gpu]?.usedBytes ?? 0));
    sampler.resetPeaks();
    this.#log.add({ type: "memory", phase: this.#phase, usedBytes, peakBytes });
  }

  /** Closes every slice that is open. */
  finish(): void {
    for (const name of [...this.#slices.keys()]) this.#clientPhase(name, null);
    this.memory();
  }

  /** Frames that say something for the reports. `client` is a rank where the message is one of a rank. */
  message(client: Client, message: FromClient): void {
    switch (message.type) {
      case "released":
        this.#log.add({
          type: "released",
          rank: client.index,
          gpu: client.index,
          handoff: this.#handoff,
          stage: this.#stageOf(client),
          releasedBytes: message.releasedBytes,
          savedBytes: message.savedBytes,
          cleanBytes: message.cleanBytes,
          deadBytes: message.deadBytes,
          keptBytes: message.keptBytes,
          outsideBytes: message.outsideBytes,
        });
        break;
      case "resumed":
        this.#log.add({
          type: "resumed",
          rank: client.index,
          gpu: client.index,
          handoff: this.#handoff,
          copiedBytes: message.copiedBytes,
          pendingBytes: message.pendingBytes,
        });
        break;
      case "ready":
        this.#log.add({
          type: "ready",
          engine: client.index,
          gpus: engineGpus(this.#config, client.index),
          weightBytes: message.weightBytes,
          cacheBytes: message.cacheBytes,
        });
        break;
      case "awake":
        this.#log.add({
          type: "awake",
          engine: client.index,
          gpus: engineGpus(this.#config, client.index),
          tags: message.tags,
        });
        break;
      case "asleep":
        this.#log.add({
          type: "asleep",
          engine: client.index,
          handoff: this.#handoff,
          gpus: engineGpus(this.#config, client.index),
          leftBytes: message.leftBytes,
        });
        break;
      case "logprobCheck":
        this.#log.add({
          type: "logprob",
          rank: client.index,
          epoch: message.epoch,
          tokens: message.tokens,
          maxDifference: message.maxDifference,
          meanDifference: message.meanDifference,
        });
        break;
      case "metrics":
        this.#log.add({ type: "metrics", rank: client.index, step: message.step, values: message.values });
        break;
      default:
        break;
    }
    const figures = figuresOf(message);
    if (figures !== null) this.figures(client, figures);
  }

  #stageOf(client: Client): "optimizer" | "all" {
    return this.#slices.get(clientName(client))?.name === "releasing" ? "optimizer" : "all";
  }

  #clientPhase(name: string, next: string | null): void {
    const now = this.#nowMs();
    const slice = this.#slices.get(name);
    if (slice !== undefined) {
      this.#log.add({
        type: "work",
        process: name,
        name: slice.name,
        phase: slice.nodePhase,
        startMs: slice.startMs,
        durationMs: now - slice.startMs,
        figures: slice.figures,
      });
    }
    if (next === null) this.#slices.delete(name);
    else this.#slices.set(name, { name: next, startMs: now, nodePhase: this.#phase, figures: {} });
  }
}

/** The GPU of a client; an engine process itself is on none. */
export function gpuOf(config: PhaseConfig, client: Client): number | null {
  if (client.role === "rank") return client.index;
  return client.role === "worker" ? (engineGpus(config, client.engine)[client.index] ?? null) : null;
}

/** The scalars of an answer, for the trace. */
function figuresOf(message: FromClient): Figures | null {
  switch (message.type) {
    case "released":
    case "resumed":
    case "returned":
    case "synced":
    case "summed":
    case "planned":
    case "awake":
    case "asleep":
    case "generated":
      break;
    default:
      return null;
  }
  const figures: Figures = {};
  for (const [name, value] of Object.entries(message)) {
    if (name !== "type" && name !== "seq" && (typeof value === "number" || typeof value === "string")) {
      figures[name] = value;
    }
  }
  return figures;
}
