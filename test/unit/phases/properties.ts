/** What must hold of every command, judged by what is true of the processes and not by what the machine believes. */
import { type Command, type Event, type State, waits } from "../../../src/phases/index.js";
import type { Process, Worker } from "./processes.js";
import type { World } from "./world.js";

/** A property of the machine does not hold. */
export class Violation extends Error {}

function require(holds: boolean | undefined, what: string): void {
  if (!holds) throw new Violation(what);
}

/** What is true of an engine. */
interface EngineFacts {
  awake: string[];
  syncedWorkers: number;
  epoch: number | null;
  /** Its weights of this handoff were compared with the trainer's. */
  verified: boolean;
}

export class Properties {
  readonly engines: EngineFacts[];
  /** Workers that may have ranks' parameters mapped: worker's name -> ranks. */
  private readonly mapped = new Map<string, readonly number[]>();
  /** Unanswered commands by the name of the client. */
  private readonly owed = new Map<string, number>();
  /** Ranks whose sums of this handoff are here. */
  private readonly exported = new Set<number>();
  private handoff = 0;
  /** Counts manifests; a worker's plan is made of those that there were then. */
  private manifests = 0;
  /** When the handoff began. */
  private manifestsThen = 0;
  private readonly planOf = new Map<string, number>();
  /** Tokens that each engine reported for its request. */
  private readonly tokens = new Map<number, number>();

  constructor(private readonly world: World) {
    this.engines = world.engines.map(() => ({ awake: [], syncedWorkers: 0, epoch: null, verified: false }));
  }

  /** A worker has done its copies. */
  unmapped(worker: Worker): void {
    this.mapped.delete(worker.name);
    const facts = this.factsOf(worker.engine);
    facts.syncedWorkers += 1;
    if (facts.syncedWorkers === this.world.scenario.tensorParallel) facts.epoch = this.world.epoch;
  }

  /** An event is about to be given to the machine: an answer settles what its client owed. */
  heard(event: Event): void {
    if (event.type === "manifest") this.manifests += 1;
    if (event.type === "exported") this.exported.add(event.rank);
    if (event.type === "verified") this.factsOf(event.engine).verified = event.failure === null;
    const process = this.answering(event);
    if (process === undefined) return;
    const owed = (this.owed.get(process.name) ?? 0) - 1;
    if (owed > 0) this.owed.set(process.name, owed);
    else this.owed.delete(process.name);
  }

  private answering(event: Event): Process | undefined {
    switch (event.type) {
      case "released":
      case "exported":
      case "resumed":
        return this.world.ranks[event.rank];
      case "awake":
      case "asleep":
      case "generated":
        return this.world.engines[event.engine];
      case "planned":
      case "synced":
      case "summed":
        return this.world.workersOf(event.engine)[event.worker];
      default:
        return undefined;
    }
  }

  /** The machine has answered with these commands; they have not been obeyed yet. */
  answered(event: Event, state: State, commands: readonly Command[]): void {
    if (state.handoff !== this.handoff) {
      this.handoff = state.handoff;
      this.exported.clear();
      this.manifestsThen = this.manifests;
      const { ranks } = this.world;
      require(ranks.every(({ signature }) => signature === ranks[0]?.signature), "ranks with different manifests meet");
      for (const facts of this.engines) facts.verified = false;
    }
    if (event.type === "progress" && state.ended === null) this.checkProgress(event, commands);
  }

  /** A command that waits for an answer of this client. */
  owes(process: Process): void {
    this.owed.set(process.name, (this.owed.get(process.name) ?? 0) + 1);
  }

  /** A command is about to be obeyed. */
  check(command: Command): void {
    const { world } = this;
    switch (command.type) {
      case "send":
        this.checkSend(command);
        break;
      case "welcome":
        require(command.client.role !== "rank" || this.allEnginesEmpty(), "a rank is welcome while an engine starts");
        break;
      case "sendManifests":
        this.planOf.set(`${command.engine} ${command.worker}`, this.manifests);
        break;
      case "exportSegments":
        require(this.hasParameters(command.rank), "a rank exports parameters that it gave back");
        break;
      case "sendSources":
        this.checkSources(command);
        break;
      case "verifyWeights":
        require(this.exported.size === world.ranks.length, "verifies without the sums of all ranks");
        break;
      case "generate":
        this.requireFullyAwake(command.engine, command.epoch);
        this.tokens.set(command.engine, 0);
        break;
      case "setDeadline":
        require(command.ms > 0 && Number.isFinite(command.ms), "a deadline that is none");
        break;
      case "end":
        require(world.end === null, "the run ends twice");
        break;
    }
  }

  private checkSend({ client, message }: Extract<Command, { type: "send" }>): void {
    if (message.type === "release" && message.stage === "all") {
      const readers = [...this.mapped].filter(([, sources]) => sources.includes(client.index));
      require(readers.length === 0, `rank ${client.index} gives back what ${readers[0]?.[0]} is reading`);
    }
    if (message.type === "wake") {
      const { awake } = this.factsOf(client.index);
      require(!message.tags.some((tag) => awake.includes(tag)), "wakes what is awake");
      if (message.tags.includes("kv_cache")) this.requireSynced(client.index, this.world.epoch);
    }
    if (message.type === "opened") this.requireFullyAwake(this.world.groupEngine(client.index), message.epoch);
    if (message.type === "resume") {
      require(this.world.memory.engineIsEmpty(client.index), "a rank maps memory beside an engine that is awake");
    }
  }

  private checkSources(command: Extract<Command, { type: "sendSources" }>): void {
    const worker = this.world.workersOf(command.engine)[command.worker] as Worker;
    const sources = this.world.sourcesOf(worker);
    require(this.factsOf(command.engine).awake.includes("weights"), "sync of an engine without weights");
    require(sources.every((rank) => this.hasParameters(rank)), "sync from parameters that are gone");
    const plan = this.planOf.get(`${command.engine} ${command.worker}`) ?? -1;
    require(plan >= this.manifestsThen, "sync by a plan of other manifests");
    this.mapped.set(worker.name, sources);
  }

  /** Memory was just taken on these GPUs. */
  requireRoom(gpus: readonly number[], what: string): void {
    for (const gpu of gpus) require(this.world.memory.freeBytes(gpu) >= 0, `${what}: more than GPU ${gpu} has`);
  }

  private requireSynced(engine: number, epoch: number): void {
    const facts = this.factsOf(engine);
    require(facts.awake.includes("weights"), "the weights are not awake");
    require(facts.syncedWorkers === this.world.scenario.tensorParallel, "a worker has not taken the weights");
    require(facts.epoch === epoch && epoch === this.world.epoch, "weights of another epoch");
  }

  private requireFullyAwake(engine: number, epoch: number): void {
    this.requireSynced(engine, epoch);
    const { awake, verified } = this.factsOf(engine);
    require(awake.includes("kv_cache"), "the cache is not awake");
    const { weights } = this.world.scenario;
    const mustVerify = weights === "every" || (weights === "first" && this.handoff === 1);
    require(verified || !mustVerify, "weights that were not verified");
    require(!verified || weights !== "off", "weights were verified that must not be");
  }

  /** New tokens, and nothing else, give an engine more time. */
  private checkProgress(event: Extract<Event, { type: "progress" }>, commands: readonly Command[]): void {
    const further = event.generatedTokens > (this.tokens.get(event.engine) ?? 0);
    const extended = commands.some(({ type }) => type === "setDeadline");
    require(further === extended, further ? "progress gives no more time" : "no progress gives more time");
    if (further) this.tokens.set(event.engine, event.generatedTokens);
  }

  /** Whoever owes an answer is awaited, with a deadline that is armed; timers are those of the waits. */
  checkWaits(state: State, timers: ReadonlyMap<string, number>): void {
    const list = waits(state);
    require(list.length > 0, "a state that waits for nothing");
    require(list.length === timers.size, "timers and waits differ");
    for (const wait of list) require(timers.get(wait.key) === wait.ms, `no timer for ${wait.key}`);
    if (this.owed.size === 0) return;
    for (const { name, client } of this.world.processes) {
      if (!this.owed.has(name)) continue;
      const engine = client.role === "worker" ? client.engine : null;
      const named = list.some((wait) =>
        wait.clients.some(
          (one) =>
            one.role === client.role && one.index === client.index && (one.role !== "worker" || one.engine === engine),
        ),
      );
      require(named, `nobody waits for ${name}, which owes an answer`);
    }
  }

  private factsOf(engine: number): EngineFacts {
    return this.engines[engine] as EngineFacts;
  }

  /** What a dead rank held is gone, and the machine need not know yet. */
  private hasParameters(rank: number): boolean {
    return this.world.memory.hasParameters(rank) || this.world.ranks[rank]?.stopped === true;
  }

  private allEnginesEmpty(): boolean {
    const { memory, engines } = this.world;
    return engines.every(({ index }) => memory.engineGpus(index).every((gpu) => memory.engineIsEmpty(gpu)));
  }
}
