/**
 * What a person sees while a run goes on: one line for each generated batch and, on a terminal, a last line that
 * says what the node is doing now. Without a terminal there is no colour and nothing is written twice.
 */
import { styleText } from "node:util";
import type { EventBody, RunEvent, Stamp } from "./events.js";
import { shortBytes, shortSeconds } from "./figures.js";
import { GpuSides, type Shares, SIDES, type Side } from "./sides.js";

/** Where the lines go; `process.stderr` has this shape. */
export interface Screen {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

type Style = "dim" | "bold" | "green" | "red" | "yellow" | "cyan";

/** One colour a side, and for the phases that are its turn. */
const SIDE_STYLES: Readonly<Record<Side, Style>> = { training: "green", engine: "cyan" };
const PHASE_STYLES: Readonly<Record<string, Style>> = { train: SIDE_STYLES.training, generate: SIDE_STYLES.engine };
const FIGURES = [
  ["reward", "reward", "bold"],
  ["heldOut", "held-out", "bold"],
] as const;
/** Phases that are always shown; others when they are a good part of it. */
const TURNS: ReadonlySet<string> = new Set(["train", "generate"]);
const LEAST_SHARE = 0.05;
const LEAST_MS = 5;
const GAP = "  ";
const CLEAR = "\r\u001b[K";

/** What is shown whole or not at all, with its width in columns. */
interface Part {
  readonly pieces: readonly Piece[];
  readonly width: number;
}
type Piece = readonly [Style | null, string];

function part(...pieces: readonly Piece[]): Part {
  return { pieces, width: pieces.reduce((sum, [, text]) => sum + [...text].length, 0) };
}

function widthOf(parts: readonly Part[]): number {
  return parts.reduce((sum, { width }) => sum + width, GAP.length * (parts.length - 1));
}

/** "nodes 0-2 generate, 3 sleep". */
export function nodePhases(phases: readonly (string | null)[]): string {
  const runs: { first: number; last: number; phase: string }[] = [];
  phases.forEach((phase, node) => {
    const before = runs.at(-1);
    if (before !== undefined && before.phase === (phase ?? "?")) before.last = node;
    else runs.push({ first: node, last: node, phase: phase ?? "?" });
  });
  const words = runs.map(({ first, last, phase }) => `${first === last ? first : `${first}-${last}`} ${phase}`);
  return `nodes ${words.join(", ")}`;
}

/** Feed it every event of a run with `show`. */
export class Progress {
  readonly #screen: Screen;
  readonly #colour: boolean;
  readonly #sides = new GpuSides();
  #startedMs = 0;
  /** What a start waits for: how many there are, and how many there will be. */
  #engines = { ready: 0, all: 0 };
  #ranks = { connected: 0, all: 0 };
  #phase: { name: string; sinceMs: number } | null = null;
  /** Milliseconds by phase since the last line. */
  #spent = new Map<string, number>();
  #step: number | null = null;
  /** What each rank that speaks says of the step; people see the mean. */
  #values = new Map<string, number[]>();
  #live = false;
  /** Phase of each node, where there are several. */
  #nodes: readonly (string | null)[] = [];

  constructor(screen: Screen, colour: boolean = screen.isTTY === true && process.env.NO_COLOR === undefined) {
    this.#screen = screen;
    this.#colour = colour;
  }

  show(event: RunEvent): void {
    this.#sides.see(event);
    switch (event.type) {
      case "started":
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

  /** What all nodes are doing, for the live line; null: not known. */
  nodes(phases: readonly (string | null)[]): void {
    this.#nodes = phases;
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
    const { name, sinceMs } = this.#phase;
    const parts = [
      part([PHASE_STYLES[name] ?? "dim", `${GAP}${name}`], ["dim", ` ${shortSeconds(nowMs - sinceMs)} s`]),
    ];
    if (name === "start") parts.push(part(["dim", this.#waiting()]));
    if (this.#nodes.length > 1) parts.push(part(["dim", nodePhases(this.#nodes)]));
    const shares = name === "start" ? {} : (this.#sides.now ?? {});
    this.#screen.write(`${CLEAR}${this.#withMemory(parts, shares, parts.slice(0, 1))}`);
    this.#live = true;
  }

  clear(): void {
    if (this.#live) {
      this.#screen.write(CLEAR);
      this.#live = false;
    }
  }

  #waiting(): string {
    const ranks = `${this.#ranks.connected}${this.#ranks.all === 0 ? "" : ` of ${this.#ranks.all}`} ranks connected`;
    return `${this.#engines.ready} of ${this.#engines.all} engines ready, ${ranks}`;
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

  #stepLine(): void {
    if (this.#step === null) return;
    const parts: Part[] = [part(["bold", `batch ${String(this.#step).padStart(3)}`])];
    for (const [name, label, style] of FIGURES) {
      const values = this.#values.get(name);
      if (values === undefined) continue;
      const value = values.reduce((sum, one) => sum + one, 0) / values.length;
      parts.push(part([null, `${label} `], [style, value.toFixed(3)]));
    }
    parts.push(part(["dim", `${this.#seconds()} s`]));
    this.line(this.#withMemory(parts, this.#sides.inTurn));
    this.#step = null;
    this.#values = new Map();
    this.#spent = new Map();
    this.#sides.next();
  }

  /** Training, generation, and what else took a good part of the step; the rest is what handing over cost. */
  #seconds(): string {
    const all = [...this.#spent].filter(([, ms]) => ms > 0);
    const total = all.reduce((sum, [, ms]) => sum + ms, 0);
    const isShown = ([name, ms]: readonly [string, number]): boolean =>
      ms >= LEAST_MS && (TURNS.has(name) || ms >= total * LEAST_SHARE);
    const rest = all.filter((each) => !isShown(each)).reduce((sum, [, ms]) => sum + ms, 0);
    const shown: (readonly [string, number])[] = all.filter(isShown);
    if (rest >= LEAST_MS) shown.push(["handoff", rest]);
    return shown.map(([name, ms]) => `${name} ${shortSeconds(ms)}`).join(" ");
  }

  #memoryParts(shares: Partial<Shares>): Part[] {
    return SIDES.flatMap((side) => {
      const bytes = shares[side];
      return bytes === undefined ? [] : [part([null, `${side} `], [SIDE_STYLES[side], this.#sides.picture(bytes)])];
    });
  }

  /** With what each side has of the GPUs: a bar for each, or the figures alone where the terminal is too narrow. */
  #withMemory(parts: readonly Part[], shares: Partial<Shares>, least = parts): string {
    const long = [...parts, ...this.#memoryParts(shares)];
    const short = [...parts, part(["dim", this.#sides.figures(shares)])];
    return this.#text([long, short, parts].find((each) => widthOf(each) <= this.#room) ?? least);
  }

  get #room(): number {
    return this.#screen.isTTY === true ? (this.#screen.columns ?? 80) - 1 : Number.POSITIVE_INFINITY;
  }

  #text(parts: readonly Part[]): string {
    return parts
      .map(({ pieces }) => pieces.map(([style, text]) => (style ? this.#style(style, text) : text)).join(""))
      .join(GAP);
  }

  #style(style: Style, text: string): string {
    return this.#colour ? styleText(style, text) : text;
  }
}
