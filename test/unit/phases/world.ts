/**
 * A simulated node around the state machine: processes that answer in any order, die, hang and misbehave; GPUs
 * with limited memory; timers.
 */
import {
  type Command,
  type Deadlines,
  type Event,
  initialState,
  type ProcessExit,
  type State,
  transition,
} from "../../../src/phases/index.js";
import { Memory } from "./memory.js";
import { Engine, type Process, Rank, Worker } from "./processes.js";
import { Properties, Violation } from "./properties.js";
import { Random } from "./random.js";
import type { Corruption, Scenario } from "./scenario.js";
import { unasked } from "./unasked.js";

export type EndCommand = Extract<Command, { type: "end" }>;
export type Machine = (state: State, event: Event) => { state: State; commands: readonly Command[] };

const DEADLINE_MS = 1000;
const DEADLINES = Object.fromEntries(
  [
    "start",
    "train",
    "arrive",
    "release",
    "room",
    "wake",
    "plan",
    "sync",
    "generateIdle",
    "rollout",
    "sleep",
    "resume",
    "stop",
  ].map((name) => [`${name}Ms`, DEADLINE_MS]),
) as unknown as Deadlines;

export class World {
  readonly random: Random;
  readonly memory: Memory;
  readonly ranks: Rank[];
  readonly engines: Engine[];
  readonly processes: Process[];
  readonly properties: Properties;
  readonly fallbacks = new Map<string, boolean>();
  /** Highest epoch that a rank trained to. */
  epoch = 0;
  state: State;
  end: EndCommand | null = null;
  events = 0;
  /** The fault has happened. */
  struck: Process | "node" | null = null;
  firedKey: string | null = null;

  private corruptions = 0;
  private readonly workers: Worker[];
  private readonly timers = new Map<string, number>();
  private readonly deaths: Event[] = [];
  private readonly measurements: Extract<Command, { type: "measureRoom" }>[] = [];
  private fruitlessMeasurements = 0;
  private readonly verifications: number[] = [];
  private launcherDone = false;

  constructor(
    readonly scenario: Scenario,
    private readonly machine: Machine = transition,
  ) {
    const { engines, tensorParallel, ranks } = scenario;
    this.random = new Random(scenario.seed);
    this.memory = new Memory(scenario);
    this.ranks = Array.from({ length: ranks }, (_, index) => new Rank(this, index));
    this.engines = Array.from({ length: engines }, (_, index) => new Engine(this, index));
    this.workers = this.engines.flatMap((engine) =>
      Array.from({ length: tensorParallel }, (_, index) => new Worker(this, engine.index, index)),
    );
    this.processes = [...this.ranks, ...this.engines, ...this.workers];
    this.properties = new Properties(this);
    this.state = initialState({
      gpus: this.memory.gpus,
      ranks: this.random.oneIn(2) ? ranks : null,
      engines,
      tensorParallel,
      engineDtype: "bfloat16",
      release: scenario.release,
      checks: {
        weights: scenario.weights,
        compareFirst: scenario.compareFirst,
        logprobMaxBound: 0.2,
        logprobMeanBound: 0.01,
        needsFloat32: false,
      },
      deadlines: DEADLINES,
    });
  }

  /** Runs until the run has ended. */
  run(): EndCommand {
    this.deliver({ type: "started" });
    while (this.end === null) {
      if (this.events > 20_000) throw new Violation("the run does not end");
      this.strike();
      if (this.end === null && !this.actOnce()) this.passDeadline();
    }
    const end: EndCommand = this.end;
    // After the end nothing is commanded, whatever else happens.
    for (const process of this.processes) {
      for (const event of process.outbox.splice(0, 2)) this.deliver(event);
    }
    this.deliver({ type: "deadlinePassed", key: "train" });
    this.deliver({ type: "interrupted", signal: "SIGINT" });
    return end;
  }

  /** True when this message is the one that the scenario spoils. */
  corrupt(kind: Corruption): boolean {
    const { fault } = this.scenario;
    if (fault.kind !== kind || this.struck || this.corruptions++ !== (fault as { nth: number }).nth) return false;
    this.struck = "node";
    return true;
  }

  workersOf(engine: number): Worker[] {
    return this.workers.filter((worker) => worker.engine === engine);
  }

  /** Ranks that hold a piece of what this worker needs. */
  sourcesOf(worker: Worker): number[] {
    if (this.scenario.zeroStage === 3) return this.ranks.map((rank) => rank.index);
    return [worker.gpu < this.scenario.ranks ? worker.gpu : 0];
  }

  /** A process ends: pidfd and connection tell in any order, the connection after what was sent before. */
  exit(process: Process, exit: ProcessExit): void {
    // A rank that never connected is known to the launcher only.
    if (process instanceof Rank && !process.saidHello) {
      this.deaths.push({ type: "launcherExited", exit: { code: 1, signal: null } });
    } else {
      this.deaths.push({ type: "processDied", client: process.client, exit });
    }
    if (process.saidHello) process.outbox.push({ type: "connectionLost", client: process.client, ending: true });
    else process.ended = true;
    if (process instanceof Rank) this.memory.forgetRank(process.index);
  }

  // ---- one thing after another ---------------------------------------------------------------------------

  /** One of the things that can happen now, or false when nothing can. */
  private actOnce(): boolean {
    const { processes } = this;
    const actors = processes.length + 4;
    const { laggard } = this.scenario;
    const last = laggard === null ? undefined : processes[laggard % processes.length];
    const first = this.random.below(actors);
    for (let i = first; i < first + actors; i++) {
      const process = processes[i % actors];
      if (process !== undefined && process === last) continue;
      if (process ? this.actProcess(process) : this.actNode((i % actors) - processes.length)) return true;
    }
    return last !== undefined && this.actProcess(last);
  }

  private actNode(which: number): boolean {
    if (which === 0) return this.measure();
    if (which === 1) return this.verify();
    return which === 2 ? this.die() : this.endLauncher();
  }

  private actProcess(process: Process): boolean {
    if (process.ended) return false;
    const hanging = this.scenario.fault.kind === "hang" && this.struck === process;
    const event = hanging || this.random.oneIn(2) ? undefined : process.outbox.shift();
    if (event === undefined) return process.act() || (!hanging && this.deliverNext(process));
    this.deliver(event);
    return true;
  }

  private deliverNext(process: Process): boolean {
    const event = process.outbox.shift();
    if (event === undefined) return false;
    this.deliver(event);
    return true;
  }

  private measure(): boolean {
    if (this.measurements.length === 0 || this.fruitlessMeasurements > 3) return false;
    const command = this.measurements.shift() as Extract<Command, { type: "measureRoom" }>;
    const unknown = this.scenario.fault.kind === "unknownMemory";
    // NVML may lag behind a release; it never shows memory that is not free.
    const stale = this.fruitlessMeasurements === 0 && this.random.oneIn(4);
    const before = this.measurements.length;
    this.deliver({
      type: "room",
      key: command.key,
      gpus: command.gpus.map((gpu) => ({ gpu, freeBytes: unknown ? null : stale ? 0 : this.memory.freeBytes(gpu) })),
    });
    this.fruitlessMeasurements += this.measurements.length > before ? 1 : 0;
    return true;
  }

  private verify(): boolean {
    const engine = this.verifications.shift();
    if (engine === undefined) return false;
    const failure = this.corrupt("checksumDiffers")
      ? { code: "WEIGHT_CHECKSUM_MISMATCH", message: "", expected: "", found: "", action: "" }
      : null;
    this.deliver({ type: "verified", engine, failure });
    return true;
  }

  private die(): boolean {
    // The pid of a rank or worker, and so its pidfd, comes with its hello.
    const next = this.deaths.findIndex((death) => {
      const process = death.type === "processDied" ? this.find(death.client) : undefined;
      return process === undefined || process instanceof Engine || process.outbox[0]?.type !== "hello";
    });
    if (next === -1) return false;
    this.deliver(this.deaths.splice(next, 1)[0] as Event);
    return true;
  }

  private endLauncher(): boolean {
    if (this.launcherDone || (this.scenario.fault.kind === "launcherExit" && this.struck)) return false;
    if (!this.ranks.every((rank) => rank.stopped && rank.pastRollouts === Number.POSITIVE_INFINITY)) return false;
    this.launcherDone = true;
    this.deliver({ type: "launcherExited", exit: { code: 0, signal: null } });
    return true;
  }

  /** The fault of the scenario, when it is due. */
  private strike(): void {
    const { fault } = this.scenario;
    if (!("turn" in fault) || this.events < fault.turn || (this.struck && fault.kind !== "launcherExit")) return;
    if (fault.kind === "interrupt") {
      this.struck = "node";
      this.deliver({ type: "interrupted", signal: "SIGINT" });
    } else if (fault.kind === "launcherExit") {
      if (!this.struck) this.deliver({ type: "launcherExited", exit: { code: fault.code, signal: null } });
      else if (this.random.oneIn(30)) this.fire("launcher");
      this.struck = "node";
    } else if (fault.kind === "deadline") {
      this.struck = "node";
      this.fire([...this.timers.keys()][this.random.below(this.timers.size)] as string);
    } else if ("client" in fault) {
      const process = this.processes[fault.client % this.processes.length] as Process;
      if (process.stopped) return;
      this.struck = process;
      this.strikeProcess(process, fault);
    }
  }

  private strikeProcess(process: Process, fault: Scenario["fault"]): void {
    const { client } = process;
    if (fault.kind === "unasked") {
      if (process.saidHello) process.outbox.push(unasked(process, fault.what));
      else this.struck = null;
      return;
    }
    if (fault.kind === "fail") {
      const failure = { code: "TEST_FAILURE", message: "", expected: "", found: "", action: "" };
      if (process.saidHello) process.outbox.push({ type: "failed", client, failure });
      else this.struck = null;
      return;
    }
    if (fault.kind === "disconnect" && !process.saidHello) {
      this.struck = null;
      return;
    }
    process.stopped = true;
    if (fault.kind === "die") this.exit(process, { code: null, signal: "SIGKILL" });
    if (fault.kind === "disconnect") process.outbox.push({ type: "connectionLost", client, ending: false });
  }

  /** Nobody can do anything: time passes until the first deadline. */
  private passDeadline(): void {
    if (this.timers.size === 0) throw new Violation(`a wait without a deadline in phase ${this.state.phase}`);
    const first = Math.min(...this.timers.values());
    const keys = [...this.timers].filter(([, ms]) => ms === first).map(([key]) => key);
    this.fire(keys[this.random.below(keys.length)] as string);
    if (this.end === null) throw new Violation(`deadline ${this.firedKey} did not end a run that stands still`);
  }

  private fire(key: string): void {
    if (!this.timers.delete(key)) return;
    this.firedKey = key;
    this.deliver({ type: "deadlinePassed", key });
  }

  // ---- the machine ---------------------------------------------------------------------------------------

  private deliver(event: Event): void {
    this.events += 1;
    if (event.type !== "room") this.fruitlessMeasurements = 0;
    this.properties.heard(event);
    const { state, commands } = this.machine(this.state, event);
    if (this.end !== null && commands.length > 0) throw new Violation(`${commands[0]?.type} after the end`);
    this.state = state;
    this.properties.answered(event, state, commands);
    for (const command of commands) this.obey(command);
    if (this.end !== null) return;
    if (this.random.oneIn(8)) {
      const more = this.machine(state, { type: "started" }).commands[0];
      if (more !== undefined) throw new Violation(`${more.type} was possible before and not done`);
    }
    this.properties.checkWaits(this.state, this.timers);
  }

  private give(process: Process | undefined, command: Command, answers: boolean): void {
    if (process === undefined) throw new Violation(`${command.type} to a client that does not exist`);
    if (this.end !== null) throw new Violation(`${command.type} after the end`);
    process.inbox.push(command);
    if (answers) this.properties.owes(process);
  }

  private obey(command: Command): void {
    this.properties.check(command);
    switch (command.type) {
      case "send":
        this.obeySend(command);
        break;
      case "welcome":
        this.give(this.find(command.client), command, false);
        if (command.client.role === "rank") this.fill(command.client.index);
        break;
      case "exportSegments":
        this.give(this.ranks[command.rank], command, true);
        break;
      case "sendManifests":
      case "sendSources":
        this.give(this.workersOf(command.engine)[command.worker], command, true);
        break;
      case "verifyWeights":
        this.verifications.push(command.engine);
        break;
      case "measureRoom":
        this.measurements.push(command);
        break;
      case "generate":
        this.give(this.engines[command.engine], command, true);
        break;
      case "completions":
        for (const rank of command.ranks) this.give(this.ranks[rank], command, false);
        break;
      case "setDeadline":
        this.timers.set(command.key, command.ms);
        break;
      case "clearDeadline":
        if (!this.timers.delete(command.key) && command.key !== this.firedKey) {
          throw new Violation(`clears ${command.key}, which is not set`);
        }
        break;
      case "end":
        this.end = command;
        break;
    }
  }

  private obeySend(command: Extract<Command, { type: "send" }>): void {
    const { client, message } = command;
    if (message.type === "wake") {
      this.memory.wake(client.index, message.tags);
      this.properties.requireRoom(this.memory.engineGpus(client.index), `engine ${client.index} wakes ${message.tags}`);
    }
    if (message.type === "resume") this.fill(client.index);
    this.give(this.find(client), command, !["opened", "plan", "sync"].includes(message.type));
  }

  private fill(rank: number): void {
    this.memory.fill(rank);
    this.properties.requireRoom([rank], `rank ${rank} fills its GPU`);
  }

  /** The engine that generates for this rank. */
  groupEngine(rank: number): number {
    return Math.floor(rank / (this.scenario.ranks / this.scenario.engines));
  }

  private find(client: Process["client"]): Process | undefined {
    if (client.role === "rank") return this.ranks[client.index];
    return client.role === "engine" ? this.engines[client.index] : this.workersOf(client.engine)[client.index];
  }
}
