import type { Failure } from "../protocol/messages.js";
import { type Client, clientName } from "./clients.js";
import type { Command, PlainMessage } from "./commands.js";
import { engineGpus, engineOfRank, engineOnGpu } from "./config.js";
import { Trouble, unexpected } from "./failures.js";
import type { EngineState, Life, RankState, RoomWait, State, WorkerState } from "./state.js";

/** One transition under way: a state that may be changed, and the commands so far. */
export class Step {
  readonly commands: Command[] = [];

  constructor(readonly state: State) {}

  /** Ends the run. */
  fail(failure: Failure, gpus: readonly number[] = []): never {
    throw new Trouble(failure, gpus);
  }

  command(command: Command): void {
    this.commands.push(command);
  }

  send(client: Client, message: PlainMessage): void {
    this.commands.push({ type: "send", client, message });
  }

  /** A number for a command that will be answered. */
  seq(): number {
    return this.state.nextSeq++;
  }

  newRoomWait(): RoomWait {
    return { number: this.state.nextRoomWait++, attempts: 0, asked: false, lacking: "", gpus: [] };
  }

  /** @throws Trouble UNEXPECTED_MESSAGE for a rank that is not there. */
  rank(index: number, message: string): RankState {
    const rank = this.state.ranks[index];
    if (rank?.life.connected) return rank;
    return this.fail(
      unexpected({ role: "rank", index }, message, "a rank that said hello", `local rank ${index} is not one`),
    );
  }

  engine(index: number, message: string): EngineState {
    const engine = this.state.engines[index];
    if (engine?.life.connected) return engine;
    return this.fail(
      unexpected({ role: "engine", index }, message, "an engine that said hello", `engine ${index} is not one`),
    );
  }

  worker(engine: number, index: number, message: string): WorkerState {
    const worker = this.state.engines[engine]?.workers[index];
    if (worker?.life.connected) return worker;
    const client: Client = { role: "worker", engine, index };
    return this.fail(unexpected(client, message, "a worker that said hello", `${clientName(client)} is not one`));
  }

  /** Requires that the client is in one of these phases (and answers command `seq`). */
  expect(
    client: Client,
    message: string,
    phase: string,
    phases: readonly string[],
    seq?: { readonly expected: number; readonly found: number },
  ): void {
    if (!phases.includes(phase)) {
      this.fail(unexpected(client, message, `state ${phases.join(" or ")}`, `state ${phase}`));
    }
    if (seq && seq.expected !== seq.found) {
      this.fail(unexpected(client, message, `the answer to command ${seq.expected}`, `to ${seq.found}`));
    }
  }

  /** The record with this client's life; undefined when there is no such client in this run. */
  living(client: Client): { life: Life } | undefined {
    if (client.role === "rank") return this.state.ranks[client.index];
    if (client.role === "engine") return this.state.engines[client.index];
    return this.state.engines[client.engine]?.workers[client.index];
  }

  /** Whether the client is a rank that has given back training state which it has not got again. */
  isAway(client: Client): boolean {
    return client.role === "rank" && (this.state.ranks[client.index]?.releasedBytes ?? 0) > 0;
  }

  /** The engine that generates for this rank. */
  engineOf(rank: RankState): EngineState {
    const engine = this.state.engines[engineOfRank(this.state.config, this.state.ranks.length, rank.index)];
    if (engine === undefined) throw new Error(`rank ${rank.index} has no engine`);
    return engine;
  }

  /** The engine that computes on this rank's GPU, or null. */
  engineBeside(rank: RankState): EngineState | null {
    const index = engineOnGpu(this.state.config, rank.index);
    return index === null ? null : (this.state.engines[index] ?? null);
  }

  /** The ranks that compute on this engine's GPUs. */
  ranksBeside(engine: EngineState): RankState[] {
    return engineGpus(this.state.config, engine.index).flatMap((gpu) => this.state.ranks[gpu] ?? []);
  }
}
