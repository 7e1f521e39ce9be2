/** Ranks, engines and workers as simple programs: each does what the real one does, when it is its turn. */
import type { Client, Command, Event } from "../../../src/phases/index.js";
import { clientName } from "../../../src/phases/index.js";
import type { World } from "./world.js";

/** A process with its connection. Frames go out in order; the world decides when each is delivered. */
export abstract class Process {
  readonly inbox: Command[] = [];
  readonly outbox: Event[] = [];
  /** Does nothing any more: killed, stopped, disconnected or over. */
  stopped = false;
  /** Nothing of it is left to be delivered. */
  ended = false;
  saidHello = false;

  constructor(
    readonly world: World,
    readonly client: Client,
  ) {}

  get name(): string {
    return clientName(this.client);
  }

  /** Does one thing if there is one to do. */
  act(): boolean {
    if (this.stopped) return false;
    const command = this.inbox.shift();
    if (command === undefined) return this.goOn();
    this.obey(command);
    return true;
  }

  /** The next thing of its own accord. */
  protected abstract goOn(): boolean;
  protected abstract obey(command: Command): void;
}

export class Rank extends Process {
  private at: "start" | "train" | "handoff" | "open" | "called" | "left" | "goodbye" = "start";
  private rollout = 0;
  private calls = 0;
  private epoch = 0;
  /** Of its last manifest. */
  signature = "";
  /** `returned` is due. */
  private pending = false;
  private attachAgain = false;

  constructor(
    world: World,
    readonly index: number,
  ) {
    super(world, { role: "rank", index });
  }

  /** Rollouts that it is past: training steps of all ranks go together. */
  get pastRollouts(): number {
    return this.at === "goodbye" ? Number.POSITIVE_INFINITY : this.at === "train" ? this.rollout : this.rollout - 1;
  }

  protected goOn(): boolean {
    const { world, index } = this;
    if (this.pending && world.random.oneIn(2)) return this.giveBack();
    switch (this.at) {
      case "start": {
        if (this.saidHello) return false;
        this.saidHello = true;
        const gpu = world.corrupt("wrongGpu") ? index + 1 : index;
        const localWorldSize = world.scenario.ranks + (world.corrupt("wrongWorldSize") ? 1 : 0);
        this.outbox.push({ type: "hello", client: this.client, gpu, localWorldSize });
        return true;
      }
      case "train":
        return this.train();
      case "open":
        return this.thinkAboutCompletions();
      default:
        return this.pending && this.giveBack();
    }
  }

  private giveBack(): boolean {
    this.pending = false;
    this.outbox.push({ type: "returned", rank: this.index });
    return true;
  }

  private train(): boolean {
    const { world } = this;
    const next = world.scenario.rollouts[this.rollout];
    if (next === undefined) return this.sayGoodbye();
    if (next.attach && !this.attachAgain) {
      this.attachAgain = true;
      this.sendManifest();
      return true;
    }
    // Optimizer steps are collective.
    if (next.steps > 0 && world.ranks.some((rank) => rank.pastRollouts < this.rollout)) return false;
    if (this.pending && next.steps > 0) return this.giveBack();
    if (world.scenario.ranks > 1 && world.corrupt("earlyGoodbye")) return this.sayGoodbye();
    this.epoch += next.steps;
    let epoch = this.epoch;
    if (world.scenario.ranks > 1 && world.corrupt("wrongEpochArrived")) epoch += 1;
    if (world.scenario.ranks > 1 && epoch > 0 && world.corrupt("olderEpochArrived")) epoch -= 1;
    this.at = "handoff";
    this.rollout += 1;
    this.calls = 0;
    this.attachAgain = false;
    world.epoch = Math.max(world.epoch, this.epoch);
    this.outbox.push({ type: "arrived", rank: this.index, epoch });
    if (world.corrupt("secondArrive")) this.outbox.push({ type: "arrived", rank: this.index, epoch });
    return true;
  }

  private sayGoodbye(): boolean {
    this.at = "goodbye";
    this.outbox.push({ type: "goodbye", client: this.client });
    this.stopped = true;
    this.world.exit(this, { code: 0, signal: null });
    return true;
  }

  private thinkAboutCompletions(): boolean {
    const { world } = this;
    const alone = world.scenario.ranks === world.scenario.engines;
    let wanted = world.scenario.rollouts[this.rollout - 1]?.calls ?? 0;
    if (this.calls === wanted && !alone && world.corrupt("extraCall")) wanted += 1;
    if (this.calls + 1 === wanted && !alone && world.corrupt("missingCall")) wanted -= 1;
    if (this.calls >= wanted) {
      this.at = "left";
      this.outbox.push({ type: "leave", rank: this.index });
      return true;
    }
    const call = this.calls + (world.corrupt("wrongCall") ? 1 : 0);
    const count = world.random.below(3);
    this.at = "called";
    this.outbox.push({ type: "prompts", rank: this.index, call, count });
    return true;
  }

  private sendManifest(): void {
    this.signature = this.world.corrupt("otherManifest") ? "other" : "same";
    this.outbox.push({
      type: "manifest",
      rank: this.index,
      signature: this.signature,
      dtype: "bfloat16",
      scratchBytes: 0,
    });
    this.at = "train";
  }

  protected obey(command: Command): void {
    const { world, index } = this;
    if (command.type === "welcome") this.sendManifest();
    if (command.type === "exportSegments") this.outbox.push({ type: "exported", rank: index, seq: command.seq });
    if (command.type === "completions") {
      this.calls += 1;
      this.at = "open";
    }
    if (command.type !== "send") return;
    const { message } = command;
    if (message.type === "opened") this.at = "open";
    if (message.type === "release") {
      const releasedBytes = world.memory.release(index, message.stage, message.wantBytes);
      const seq = message.seq + (world.corrupt("wrongSeq") ? 1 : 0);
      this.outbox.push({ type: "released", rank: index, seq, releasedBytes });
    }
    if (message.type === "resume") {
      this.at = "train";
      this.pending = true;
      this.outbox.push({ type: "resumed", rank: index, seq: message.seq });
      const maxDifference = world.corrupt("logprobTooFar") ? 1 : world.random.oneIn(4) ? null : 0.001;
      this.outbox.push({
        type: "logprobCheck",
        rank: index,
        epoch: this.epoch,
        tokens: maxDifference === null ? 0 : 40,
        maxDifference,
        meanDifference: maxDifference,
      });
    }
  }
}

export class Engine extends Process {
  constructor(
    world: World,
    readonly index: number,
  ) {
    super(world, { role: "engine", index });
  }

  private ready = false;

  protected goOn(): boolean {
    const { world, index } = this;
    if (!this.saidHello) {
      this.saidHello = true;
      this.outbox.push({ type: "hello", client: this.client, gpu: null, localWorldSize: null });
      return true;
    }
    if (this.ready || !world.workersOf(index).every((worker) => worker.saidHello)) return false;
    this.ready = true;
    world.memory.engineStarted(index);
    const { tensorParallel, weightBytes, cacheBytes } = world.scenario;
    this.outbox.push({ type: "ready", engine: index, tensorParallel, weightBytes, cacheBytes });
    return true;
  }

  protected obey(command: Command): void {
    const { world, index } = this;
    if (command.type === "generate") {
      for (let i = world.random.below(3); i > 0; i--) {
        const generatedTokens = world.random.below(5);
        this.outbox.push({
          type: "progress",
          engine: index,
          request: command.request,
          finishedSamples: 0,
          generatedTokens,
        });
      }
      const epoch = command.epoch - (world.corrupt("staleGenerated") ? 1 : 0);
      this.outbox.push({ type: "generated", engine: index, request: command.request, epoch });
    }
    if (command.type !== "send") return;
    const { message } = command;
    if (message.type === "wake") {
      world.properties.engines[index]?.awake.push(...message.tags);
      this.outbox.push({ type: "awake", engine: index, seq: message.seq, tags: message.tags });
    }
    if (message.type === "sleep") {
      world.memory.engineSleeps(index);
      this.outbox.push({ type: "asleep", engine: index, seq: message.seq });
      const facts = world.properties.engines[index];
      if (facts) Object.assign(facts, { awake: [], syncedWorkers: 0, epoch: null });
    }
  }
}

export class Worker extends Process {
  constructor(
    world: World,
    readonly engine: number,
    readonly index: number,
  ) {
    super(world, { role: "worker", engine, index });
  }

  get gpu(): number {
    return this.engine * this.world.scenario.tensorParallel + this.index;
  }

  protected goOn(): boolean {
    if (this.saidHello) return false;
    this.saidHello = true;
    const gpu = this.gpu + (this.world.corrupt("wrongGpu") ? 1 : 0);
    this.outbox.push({ type: "hello", client: this.client, gpu, localWorldSize: null });
    return true;
  }

  protected obey(command: Command): void {
    const { world, engine, index: worker } = this;
    if (command.type === "sendManifests") {
      const sources = world.sourcesOf(this);
      const fallback = world.random.oneIn(5) ? "quantized" : null;
      this.outbox.push({ type: "planned", engine, worker, seq: command.seq, sources, fallback });
      world.fallbacks.set(this.name, fallback !== null);
    }
    if (command.type === "sendSources") {
      const epoch = command.epoch - (world.corrupt("staleSynced") ? 1 : 0);
      const compares = command.compare && !world.fallbacks.get(this.name);
      const compared = compares ? (world.corrupt("compareDiffers") ? ["layer.0"] : []) : null;
      world.properties.unmapped(this);
      this.outbox.push({ type: "synced", engine, worker, seq: command.seq, epoch, compared });
      if (command.checksums) {
        this.outbox.push({ type: "summed", engine, worker, seq: command.seq });
        world.properties.owes(this);
      }
    }
  }
}
