/**
 * What the controller does all the time: pings its clients, looks for stopped processes (itself among them), keeps
 * the progress line alive.
 */
import type { ProcessInfo } from "../native.js";
import type { Progress } from "../report/progress.js";
import type { Child } from "./children.js";
import type { Bystanders } from "./ending.js";
import type { BatonNode } from "./node.js";
import { isStopped, StopWatch, stopDeadlineMs, stoppedFailure, type Watched } from "./patience.js";
import type { Recorder } from "./recorder.js";

const BEAT_MS = 1_000;
const TICK_MS = 200;

export interface HeartOptions {
  readonly node: BatonNode;
  readonly recorder: Recorder;
  readonly children: readonly Child[];
  readonly bystanders: Bystanders;
  readonly progress: Progress;
  readonly nowMs: () => number;
}

export class Heart {
  readonly #options: HeartOptions;
  readonly #beat: NodeJS.Timeout;
  readonly #tick: NodeJS.Timeout;
  readonly #stopWatch = new StopWatch();
  /** Every process of the run that was ever seen. */
  readonly #known = new Set<number>();
  #lastBeatMs: number;
  /** Between the last two beats. */
  #lastPauseMs = 0;
  #pings = 0;

  constructor(options: HeartOptions) {
    this.#options = options;
    this.#lastBeatMs = options.nowMs();
    this.#beat = setInterval(() => this.#beatOnce(), BEAT_MS);
    this.#tick = setInterval(() => options.progress.tick(options.nowMs()), TICK_MS);
  }

  stop(): void {
    clearInterval(this.#beat);
    clearInterval(this.#tick);
  }

  /** Whether this process was one of the run. */
  knows(pid: number): boolean {
    return this.#known.has(pid);
  }

  /** Processes of the run that are stopped now. */
  stopped(): Watched[] {
    return this.#watched().filter(({ state }) => isStopped(state));
  }

  /** How long this process itself did not run lately (or does not know yet that it did not), in ms. */
  pausedMs(): number {
    return Math.max(this.#lastPauseMs, this.#options.nowMs() - this.#lastBeatMs);
  }

  #beatOnce(): void {
    const { node, recorder, nowMs } = this.#options;
    this.#lastPauseMs = nowMs() - this.#lastBeatMs;
    this.#lastBeatMs = nowMs();
    this.#pings += 1;
    node.server.broadcast({ type: "ping", seq: this.#pings });
    const deadlineMs = stopDeadlineMs(node.state.config.deadlines, recorder.phase);
    const late = this.#stopWatch.look(this.#watched(), nowMs(), deadlineMs);
    if (late !== null) {
      const expected = `no process that is stopped for more than the deadline of its phase, ${late.deadlineMs} ms`;
      node.fail(stoppedFailure([late.who], expected));
    }
  }

  /** Clients, guards, and what the guards run; not what those run in turn: a script may stop its own helpers. */
  #watched(): Watched[] {
    const names = new Map<number, string>();
    for (const child of this.#options.children) names.set(child.pid, `the guard of ${child.name}`);
    const infos = this.#options.bystanders.without();
    for (const { pid, ppid } of infos) {
      this.#known.add(pid);
      const child = this.#options.children.find((candidate) => candidate.pid === ppid);
      if (child !== undefined) names.set(pid, child.name);
    }
    for (const { pid, name } of this.#options.node.server.connections) names.set(pid, name);
    return infos.flatMap((info: ProcessInfo) => {
      const name = names.get(info.pid);
      return name === undefined ? [] : [{ name, pid: info.pid, state: info.state }];
    });
  }
}
