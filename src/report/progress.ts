/**
 * What a person sees while a run goes on: one line for each training step and, on a terminal, a last line that
 * says what the node is doing now. Without a terminal there is no colour and nothing is written twice.
 */
import { styleText } from "node:util";
import type { EventBody, RunEvent, Stamp } from "./events.js";

/** Where the lines go; `process.stderr` has this shape. */
export interface Screen {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

type Style = "dim" | "bold" | "green" | "red" | "yellow" | "cyan";

const BARS = [..." ▁▂▃▄▅▆▇█"];
const CLEAR = "\r\u001b[K";

/** Shares from 0 to 1 as one block character each. A share that is not nothing shows at least the lowest block. */
export function bars(shares: readonly number[]): string {
  return shares
    .map((share) => {
      const level = Math.round(Math.min(1, Math.max(0, share)) * (BARS.length - 1));
      return BARS[share > 0 ? Math.max(1, level) : 0] ?? " ";
    })
    .join("");
}

/** Seconds in as many digits as a person reads: "0.04", "1.2", "37", "2m05". */
export function shortSeconds(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 0.995) {
    return seconds.toFixed(2);
  }
  if (seconds < 99.5) {
    return seconds < 9.95 ? seconds.toFixed(1) : seconds.toFixed(0);
  }
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}m${String(whole % 60).padStart(2, "0")}`;
}

/** Bytes with a binary unit: "640 KiB", "1.5 MiB", "12 GiB". */
export function shortBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 9.95 && unit > 0 ? value.toFixed(1) : value.toFixed(0)} ${units[unit]}`;
}

/** Feed it every event of a run with `show`. */
export class Progress {
  readonly #screen: Screen;
  readonly #colour: boolean;
  #gpuBytes: readonly number[] = [];
  #startedMs = 0;
  /** What a start waits for: how many there are, and how many there will be. */
  #engines = { ready: 0, all: 0 };
  #ranks = { connected: 0, all: 0 };
  #phase: { name: string; sinceMs: number } | null = null;
  /** Milliseconds by phase since the last line. */
  #spent = new Map<string, number>();
  /** Most memory by phase since the last line, by GPU. */
  #peaks = new Map<string, number[]>();
  #step: number | null = null;
  /** What each rank that speaks says of the step; people see the mean. */
  #values = new Map<string, number[]>();
  #live = false;

  constructor(screen: Screen, colour: boolean = screen.isTTY === true && process.env.NO_COLOR === undefined) {
    this.#screen = screen;
    this.#colour = colour;
  }

  show(event: RunEvent): void {
    switch (event.type) {
      case "started":
        this.#gpuBytes = event.gpuBytes;
        this.#startedMs = event.monotonicMs;
        this.#engines.all = event.topology.engines;
        this.#ranks.all = event.topology.ranks;
        this.#started(event);
        break;
      case "process":
        if (event.what === "connected" && event.process.startsWith("rank ")) this.#ranks.connected += 1;
        break;
      case "ready":
        this.#engines.ready += 1;
        if (this.#engines.ready === this.#engines.all) {
          this.line(
            `${this.#style("dim", "engines")}  ready after ${shortSeconds(event.monotonicMs - this.#startedMs)} s, ` +
              `${shortBytes(event.weightBytes)} of weights and ${shortBytes(event.cacheBytes)} of cache a GPU`,
          );
        }
        break;
      case "model":
        this.line(
          this.#style("dim", "model    ") +
            `${event.elements.toLocaleString("en")} ${event.dtype} parameters in ${event.tensors} tensors, ` +
            `ZeRO-${event.zeroStage}, training state ${shortBytes(Math.max(...event.stateBytes))} a rank`,
        );
        break;
      case "phase":
        this.#phaseChanged(event);
        break;
      case "metrics":
        this.#metrics(event);
        break;
      case "memory":
        this.#memory(event);
        break;
      case "note":
        this.line(`${this.#style("yellow", "note     ")}${event.process}: ${event.message}`);
        break;
      case "exit":
        this.#stepLine();
        this.clear();
        this.#phase = null;
        break;
      default:
        break;
    }
  }

  /** Writes one whole line above the live one. */
  line(text: string): void {
    this.clear();
    this.#screen.write(`${text}\n`);
  }

  /** Rewrites the live line; does nothing without a terminal. Call it a few times a second. */
  tick(nowMs: number): void {
    if (this.#screen.isTTY !== true || this.#phase === null) {
      return;
    }
    const waiting =
      this.#phase.name === "start"
        ? `: ${this.#engines.ready} of ${this.#engines.all} engines ready, ` +
          `${this.#ranks.connected}${this.#ranks.all === 0 ? "" : ` of ${this.#ranks.all}`} ranks connected`
        : "";
    const text = `  ${this.#phase.name} ${shortSeconds(nowMs - this.#phase.sinceMs)} s${waiting}`;
    this.#screen.write(`${CLEAR}${this.#style("dim", text.slice(0, (this.#screen.columns ?? 80) - 1))}`);
    this.#live = true;
  }

  clear(): void {
    if (this.#live) {
      this.#screen.write(CLEAR);
      this.#live = false;
    }
  }

  #started(event: Stamp & Extract<EventBody, { type: "started" }>): void {
    const { gpus, ranks, engines, tensorParallel } = event.topology;
    const kind = event.simulated ? this.#style("yellow", "stand-in GPUs (simulated)") : "GPUs";
    const each = event.gpuBytes[0];
    this.line(
      `${this.#style("bold", "baton")}    ${gpus} ${kind}${each === undefined ? "" : ` of ${shortBytes(each)}`}, ` +
        `${ranks === 0 ? "" : `${ranks} training ranks, `}${engines} ${engines === 1 ? "engine" : "engines"} with TP=${tensorParallel}`,
    );
  }

  #phaseChanged(event: Stamp & Extract<EventBody, { type: "phase" }>): void {
    if (this.#phase !== null) {
      const spent = this.#spent.get(this.#phase.name) ?? 0;
      this.#spent.set(this.#phase.name, spent + event.monotonicMs - this.#phase.sinceMs);
    }
    this.#phase = { name: event.to, sinceMs: event.monotonicMs };
    // When every rank has arrived, every rank has said what it had to say of the step.
    const begun = event.from === "arrive" || (event.from === "train" && !["arrive", "finish"].includes(event.to));
    if (begun) {
      this.#stepLine();
    }
  }

  #metrics(event: Extract<EventBody, { type: "metrics" }>): void {
    if (this.#step !== null && event.step !== this.#step) {
      this.#stepLine();
    }
    this.#step = event.step;
    for (const [name, value] of Object.entries(event.values)) {
      this.#values.set(name, [...(this.#values.get(name) ?? []), value ?? Number.NaN]);
    }
  }

  #memory(event: Extract<EventBody, { type: "memory" }>): void {
    const known = this.#peaks.get(event.phase) ?? [];
    this.#peaks.set(
      event.phase,
      event.peakBytes.map((bytes, gpu) => Math.max(bytes, known[gpu] ?? 0)),
    );
  }

  #stepLine(): void {
    if (this.#step === null) {
      return;
    }
    const parts = [this.#style("bold", `step ${String(this.#step).padStart(3)}`)];
    for (const [name, label] of [
      ["reward", "reward"],
      ["heldOut", "held-out"],
    ] as const) {
      const values = this.#values.get(name);
      if (values !== undefined) {
        const value = values.reduce((sum, one) => sum + one, 0) / values.length;
        parts.push(`${label} ${this.#style(name === "heldOut" ? "green" : "cyan", value.toFixed(3))}`);
      }
    }
    const spent = [...this.#spent].filter(([, ms]) => ms >= 5).map(([name, ms]) => `${name} ${shortSeconds(ms)}`);
    parts.push(this.#style("dim", `${spent.join(" ")} s`));
    const memory = this.#memoryBars();
    if (memory !== "") {
      parts.push(memory);
    }
    this.line(parts.join("  "));
    this.#step = null;
    this.#values = new Map();
    this.#spent = new Map();
    this.#peaks = new Map();
  }

  /** Memory by GPU while training and while generating, each as a share of the GPU. */
  #memoryBars(): string {
    const shown = ["train", "generate"].flatMap((phase) => {
      const peak = this.#peaks.get(phase);
      return peak === undefined
        ? []
        : [`${phase} ${bars(peak.map((bytes, gpu) => bytes / (this.#gpuBytes[gpu] ?? Number.POSITIVE_INFINITY)))}`];
    });
    return shown.length === 0 ? "" : `GPU memory ${shown.join(" ")}`;
  }

  #style(style: Style, text: string): string {
    return this.#colour ? styleText(style, text) : text;
  }
}
