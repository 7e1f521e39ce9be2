/**
 * What happened in a run, in order: the one source of events.jsonl, trace.json, summary.json and the progress line.
 * An event is written once, when it happened, and never changed; whatever a report says can be computed from them.
 *
 * Times are milliseconds of CLOCK_MONOTONIC (comparable between all processes of the machine) and, beside it, wall
 * time for people. A field that nobody knows is null.
 */
import { appendFileSync, closeSync, openSync, readFileSync } from "node:fs";
import type { EndReason } from "../phases/commands.js";
import type { Failure, WakeTag } from "../protocol/messages.js";

export interface Topology {
  readonly gpus: number;
  /** 0 until they are known. */
  readonly ranks: number;
  readonly engines: number;
  readonly tensorParallel: number;
  /** null until a rank has said which (or when none ever did). */
  readonly zeroStage: number | null;
}

/** The run began: what was asked for and what it runs on. */
export interface StartedEvent {
  readonly type: "started";
  readonly run: string;
  readonly version: string;
  readonly simulated: boolean;
  readonly topology: Topology;
  readonly gpuBytes: readonly number[];
  readonly command: readonly string[];
  /** This node among several, and the name that the run has on all of them; absent: there is one. */
  readonly nodes?: { readonly run: string; readonly node: number; readonly count: number };
}

/** A process of the run came or went. */
export interface ProcessEvent {
  readonly type: "process";
  /** "controller", "launcher", "rank 3", "engine 0", "engine 0 worker 2". */
  readonly process: string;
  readonly pid: number;
  readonly gpu: number | null;
  readonly what: "spawned" | "connected" | "goodbye" | "exited";
  readonly exitCode: number | null;
  readonly signal: string | null;
}

/** What the ranks train, from their manifests. */
export interface ModelEvent {
  readonly type: "model";
  readonly zeroStage: number;
  readonly dtype: string;
  readonly tensors: number;
  readonly elements: number;
  /** Parameters, masters and moments of each rank by the stage's formula. */
  readonly stateBytes: readonly number[];
}

/** The node went from one phase to the next. */
export interface PhaseEvent {
  readonly type: "phase";
  /** null: the first phase of the run. */
  readonly from: string | null;
  readonly to: string;
  /** Handoffs to generation begun so far. */
  readonly handoff: number;
  /** Optimizer step whose weights the engines have; null before the first sync. */
  readonly epoch: number | null;
  /** How long the new phase may last; null only where progress decides. */
  readonly deadlineMs: number | null;
}

/** One process did one thing, from `startMs` for `durationMs`. */
export interface WorkEvent {
  readonly type: "work";
  readonly process: string;
  readonly name: string;
  /** The node's phase when it began. */
  readonly phase: string;
  readonly startMs: number;
  readonly durationMs: number;
  /** Figures for people who look at the trace. Names of modelled ones begin with `simulated`. */
  readonly figures: Readonly<Record<string, number | string | null>>;
}

/** A rank gave memory back. Sums over one handoff are what training released. */
export interface ReleasedEvent {
  readonly type: "released";
  readonly rank: number;
  readonly gpu: number;
  readonly handoff: number;
  readonly stage: "optimizer" | "all";
  readonly releasedBytes: number;
  readonly savedBytes: number;
  readonly cleanBytes: number;
  readonly deadBytes: number;
  /** What of the pool is still mapped, and training memory outside of it. */
  readonly keptBytes: number;
  readonly outsideBytes: number;
}

/** A rank has its parameters back; `pendingBytes` still stream in. */
export interface ResumedEvent {
  readonly type: "resumed";
  readonly rank: number;
  readonly gpu: number;
  readonly handoff: number;
  readonly copiedBytes: number;
  readonly pendingBytes: number;
}

/** An engine has started; it sleeps. Sizes are those of each worker. */
export interface ReadyEvent {
  readonly type: "ready";
  readonly engine: number;
  readonly gpus: readonly number[];
  readonly weightBytes: number;
  readonly cacheBytes: number;
}

/** An engine has mapped its weights or its cache again. */
export interface AwakeEvent {
  readonly type: "awake";
  readonly engine: number;
  readonly gpus: readonly number[];
  readonly tags: readonly WakeTag[];
}

/** An engine fell asleep. */
export interface AsleepEvent {
  readonly type: "asleep";
  readonly engine: number;
  readonly handoff: number;
  readonly gpus: readonly number[];
  /** What it says that it still holds on each of its GPUs. */
  readonly leftBytes: readonly (number | null)[];
}

/** The weights that an engine holds were compared with those of the ranks, by a checksum of each tensor. */
export interface CheckedEvent {
  readonly type: "checked";
  readonly engine: number;
  readonly epoch: number;
  readonly passed: number;
  readonly failed: number;
}

/** Trainer and engine gave logprobs for the same tokens. */
export interface LogprobEvent {
  readonly type: "logprob";
  readonly rank: number;
  readonly epoch: number;
  readonly tokens: number;
  readonly maxDifference: number | null;
  readonly meanDifference: number | null;
}

/** A group's prompts were answered. */
export interface GeneratedEvent {
  readonly type: "generated";
  readonly engine: number;
  readonly epoch: number;
  readonly prompts: number;
  readonly samples: number;
  readonly tokens: number;
}

/** A rank's own figures of a training step. */
export interface MetricsEvent {
  readonly type: "metrics";
  readonly rank: number;
  readonly step: number;
  /** null: not finite. */
  readonly values: Readonly<Record<string, number | null>>;
}

/** Memory in use by GPU, and the most since the last such event. */
export interface MemoryEvent {
  readonly type: "memory";
  readonly phase: string;
  readonly usedBytes: readonly number[];
  readonly peakBytes: readonly number[];
}

/** Something worth knowing that is no failure: a fallback, a missing figure. */
export interface NoteEvent {
  readonly type: "note";
  readonly process: string;
  readonly code: string;
  readonly message: string;
}

/** What was left when everything had ended. */
export interface LeftEvent {
  readonly type: "left";
  /** Processes of the run that are still alive. */
  readonly processes: number;
  /** Device memory held by processes of the run, by GPU; null where NVML does not say. */
  readonly deviceBytes: readonly (number | null)[];
}

/** The last event of every run. */
export interface ExitEvent {
  readonly type: "exit";
  readonly reason: ExitReason;
  readonly code: number;
  readonly failure: Failure | null;
}

/** As the state machine ends a run. */
export type ExitReason = EndReason;

export type EventBody =
  | StartedEvent
  | ProcessEvent
  | ModelEvent
  | PhaseEvent
  | WorkEvent
  | ReleasedEvent
  | ResumedEvent
  | ReadyEvent
  | AwakeEvent
  | AsleepEvent
  | CheckedEvent
  | LogprobEvent
  | GeneratedEvent
  | MetricsEvent
  | MemoryEvent
  | NoteEvent
  | LeftEvent
  | ExitEvent;

export interface Stamp {
  readonly monotonicMs: number;
  /** ISO 8601, UTC. */
  readonly wall: string;
}

export type RunEvent = Stamp & EventBody;

/** The events of one kind, typed. */
export function eventsOf<T extends EventBody["type"]>(
  events: readonly RunEvent[],
  type: T,
): (Stamp & Extract<EventBody, { type: T }>)[] {
  return events.filter((event): event is Stamp & Extract<EventBody, { type: T }> => event.type === type);
}

/** Keeps the events of a run in memory and in DIR/events.jsonl, a line each, written at once: a crash loses none. */
export class EventLog {
  readonly #events: RunEvent[] = [];
  readonly #listeners: ((event: RunEvent) => void)[] = [];
  readonly #monotonicMs: () => number;
  #file: number | null;

  /** @param path file that is begun anew; @param monotonicMs the clock */
  constructor(path: string, monotonicMs: () => number) {
    this.#file = openSync(path, "w", 0o644);
    this.#monotonicMs = monotonicMs;
  }

  get events(): readonly RunEvent[] {
    return this.#events;
  }

  onEvent(listener: (event: RunEvent) => void): void {
    this.#listeners.push(listener);
  }

  add(body: EventBody): RunEvent {
    const event: RunEvent = { monotonicMs: this.#monotonicMs(), wall: new Date().toISOString(), ...body };
    this.#events.push(event);
    if (this.#file !== null) {
      appendFileSync(this.#file, `${JSON.stringify(event)}\n`);
    }
    for (const listener of this.#listeners) {
      listener(event);
    }
    return event;
  }

  close(): void {
    if (this.#file !== null) {
      closeSync(this.#file);
      this.#file = null;
    }
  }
}

/** Reads an events.jsonl. A last line that was cut by a crash is left out. */
export function readEvents(path: string): RunEvent[] {
  const lines = readFileSync(path, "utf8").split("\n");
  const whole = lines.slice(0, -1).filter((line) => line !== "");
  return whole.map((line) => JSON.parse(line) as RunEvent);
}
