/**
 * The shell around the state machine of a node: turns frames, deaths, timers and measurements into events, and
 * executes the commands that come back. It decides nothing.
 */
import { totalmem } from "node:os";
import { toBatonError } from "../errors.js";
import { type Nvml, processInfo } from "../native.js";
import {
  type Client,
  type Command,
  type Event,
  initialState,
  type PhaseConfig,
  type ProcessExit,
  type State,
  transition,
} from "../phases/index.js";
import { type Failure, type FromController, PROTOCOL_VERSION } from "../protocol/messages.js";
import { Arenas } from "./arenas.js";
import { Deadlines } from "./deadlines.js";
import { Inbox } from "./inbox.js";
import type { RankNumbers } from "./nodes.js";
import type { Recorder } from "./recorder.js";
import { RolloutTraffic } from "./rollouts.js";
import { type Connection, type MessageAfterHello, Server, type ServerHandlers } from "./server.js";
import { WeightTraffic } from "./weights.js";

export type EndCommand = Extract<Command, { type: "end" }>;
type CommandOf<T extends Command["type"]> = Extract<Command, { type: T }>;

/** What a welcome says of the run. */
export interface RunFacts {
  readonly run: string;
  readonly simulated: boolean;
  readonly silenceSeconds: number;
  readonly maxModelLength: number;
  readonly logprobSequences: number;
  readonly verifyFrozen: number;
}

export interface NodeOptions {
  readonly config: PhaseConfig;
  readonly facts: RunFacts;
  readonly socketPath: string;
  readonly token: string;
  readonly nvml: Pick<Nvml, "memory" | "simulated">;
  readonly rankNumbers: RankNumbers;
  readonly recorder: Recorder;
  /** Called for things worth knowing that are no failure. */
  readonly note: (process: string, code: string, message: string) => void;
}

export class BatonNode implements ServerHandlers {
  readonly #options: NodeOptions;
  readonly server: Server;
  readonly weights = new WeightTraffic();
  /** Resolves with the last command of the run. */
  readonly ended: Promise<EndCommand>;
  readonly #rollouts = new RolloutTraffic();
  readonly #inbox: Inbox;
  readonly #arenas = new Arenas();
  readonly #deadlines: Deadlines;
  readonly #rooms = new Set<NodeJS.Timeout>();
  readonly #queue: Event[] = [];
  #state: State;
  #stepping = false;
  #resolveEnded: (command: EndCommand) => void = () => {};

  constructor(options: NodeOptions) {
    this.#options = options;
    this.#state = initialState(options.config);
    this.#deadlines = new Deadlines((key) => this.feed({ type: "deadlinePassed", key }));
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#inbox = new Inbox({
      ...options,
      weights: this.weights,
      rollouts: this.#rollouts,
      rankCount: () => this.#state.ranks.length,
    });
    this.server = new Server(options.socketPath, options.token, this);
  }

  get state(): State {
    return this.#state;
  }

  /** Gives an event to the machine and does what it says. Events that come up meanwhile wait their turn. */
  feed(event: Event): void {
    this.#queue.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
        const { state, commands } = transition(this.#state, next);
        this.#state = state;
        for (const command of commands) this.#execute(command);
      }
    } finally {
      this.#stepping = false;
    }
  }

  /** Tells the machine of something that the shell found wrong. */
  fail(failure: Failure, client: Client | null = null): void {
    this.feed({ type: "invalid", client, failure });
  }

  /** Stops every timer; frames are still read. */
  quiet(): void {
    this.#deadlines.clearAll();
    for (const timer of this.#rooms) clearTimeout(timer);
    this.#rooms.clear();
  }

  /** Closes connections and descriptors. */
  close(): void {
    this.quiet();
    this.server.close();
    this.weights.close();
    this.#arenas.close();
  }

  // ---- what comes from the server ----------------------------------------------------------------------

  connected(connection: Connection): void {
    this.#options.recorder.connected(connection);
    const { gpu, localWorldSize } = connection.hello;
    const wrong = this.#options.rankNumbers.see(connection.hello);
    if (wrong !== null) this.fail(wrong, connection.client);
    else this.feed({ type: "hello", client: connection.client, gpu, localWorldSize });
  }

  message(connection: Connection, message: MessageAfterHello, descriptors: number[]): void {
    const { client } = connection;
    this.#options.recorder.message(client, message);
    try {
      const event = this.#inbox.eventOf(connection, message, descriptors);
      if (event !== null) this.feed(event);
    } catch (error) {
      this.fail(toBatonError(error, "PROTOCOL_ERROR").toFields(), client);
    }
  }

  died(connection: Connection, exit: ProcessExit): void {
    this.#options.recorder.exited(connection.name, connection.pid, exit);
    this.feed({ type: "processDied", client: connection.client, exit });
  }

  lost(connection: Connection): void {
    const ending = processInfo(connection.pid)?.ending ?? true;
    this.feed({ type: "connectionLost", client: connection.client, ending });
  }

  invalid(connection: Connection | null, failure: Failure): void {
    this.fail(failure, connection?.client ?? null);
  }

  refused(failure: Failure): void {
    this.#options.note("controller", failure.code, `${failure.message} (${failure.found})`);
  }

  // ---- what the machine wants --------------------------------------------------------------------------

  #execute(command: Command): void {
    switch (command.type) {
      case "send":
        this.#send(command.client, command.message);
        break;
      case "welcome":
        this.#send(command.client, this.#welcome());
        if (command.client.role === "rank") this.#sendArena(command.client);
        break;
      case "sendManifests":
        this.#withWorker(command, "planning", (connection) => this.weights.sendManifests(connection, command.seq));
        break;
      case "exportSegments":
        this.#withClient({ role: "rank", index: command.rank }, (connection) =>
          this.weights.requestExport(connection, command.rank, command.seq, command.checksums),
        );
        break;
      case "sendSources":
        this.#withWorker(command, "syncing", (connection) => {
          const plan = this.weights.plan(command.engine, command.worker);
          if (plan !== undefined) this.weights.sendSources(connection, plan, command);
        });
        break;
      case "verifyWeights":
        void this.#verify(command);
        break;
      case "measureRoom":
        this.#measureRoom(command);
        break;
      case "generate":
        this.#generate(command);
        break;
      case "completions":
        this.#completions(command);
        break;
      case "setDeadline":
        this.#deadlines.set(command.key, command.ms);
        break;
      case "clearDeadline":
        this.#deadlines.clear(command.key);
        break;
      case "phaseChanged":
        this.#options.recorder.phaseChanged(command.client, command.name, command.handoff);
        break;
      case "epochMoved":
        this.#options.recorder.epochMoved(command.epoch);
        break;
      case "end":
        this.quiet();
        this.#resolveEnded(command);
        break;
      default:
        assertNever(command);
    }
  }

  #send(client: Client, message: FromController): void {
    this.#withClient(client, (connection) => connection.send(message));
  }

  /** Runs what concerns one client; what goes wrong there is a failure of the run, not an exception in a timer. */
  #withClient(client: Client, action: (connection: Connection) => void): void {
    const connection = this.server.find(client);
    if (connection === undefined) return;
    try {
      action(connection);
    } catch (error) {
      this.fail(toBatonError(error).toFields(), client);
    }
  }

  #withWorker(
    { engine, worker }: { readonly engine: number; readonly worker: number },
    what: string,
    action: (connection: Connection) => void,
  ): void {
    const client: Client = { role: "worker", engine, index: worker };
    this.#options.recorder.workerBegins(client, what);
    this.#withClient(client, action);
  }

  #welcome(): FromController {
    const { config, facts } = this.#options;
    return {
      type: "welcome",
      protocol: PROTOCOL_VERSION,
      run: facts.run,
      simulated: facts.simulated,
      silenceSeconds: facts.silenceSeconds,
      engines: config.engines,
      tensorParallel: config.tensorParallel,
      maxModelLength: facts.maxModelLength,
      logprobSequences: facts.logprobSequences,
      verifyFrozen: facts.verifyFrozen,
    };
  }

  #sendArena(rank: Client): void {
    this.#withClient(rank, (connection) => {
      const [engine] = this.#state.engines;
      const weightBytes = engine === undefined ? null : engine.weightBytes * this.#options.config.tensorParallel;
      // More than all of the host's memory would never be there.
      connection.send({ type: "arena", arenaBytes: totalmem(), weightBytes }, [this.#arenas.of(rank.index)]);
    });
  }

  async #verify({ engine, epoch }: CommandOf<"verifyWeights">): Promise<void> {
    try {
      const { passed, failed, failure } = await this.weights.verify(engine);
      this.#options.recorder.checked(engine, epoch, passed, failed);
      this.feed({ type: "verified", engine, failure });
    } catch (error) {
      this.feed({ type: "verified", engine, failure: toBatonError(error).toFields() });
    }
  }

  #measureRoom({ key, gpus, afterMs }: CommandOf<"measureRoom">): void {
    const measure = (): void => {
      this.#rooms.delete(timer);
      const measured = gpus.map((gpu) => {
        try {
          return { gpu, freeBytes: this.#options.nvml.memory(gpu).freeBytes };
        } catch {
          return { gpu, freeBytes: null };
        }
      });
      this.feed({ type: "room", key, gpus: measured });
    };
    const timer = setTimeout(measure, afterMs);
    this.#rooms.add(timer);
  }

  #generate({ engine, ranks, call, request, epoch }: CommandOf<"generate">): void {
    this.#withClient({ role: "engine", index: engine }, (connection) => {
      const { message, figures } = this.#rollouts.gather(ranks, call, request, epoch);
      this.#options.recorder.figures(connection.client, { ...figures });
      connection.send(message);
    });
  }

  #completions({ engine, ranks, call, request, epoch }: CommandOf<"completions">): void {
    try {
      for (const { rank, message } of this.#rollouts.scatter(ranks, call, request, epoch)) {
        this.#send({ role: "rank", index: rank }, message);
      }
    } catch (error) {
      this.fail(toBatonError(error).toFields(), { role: "engine", index: engine });
    }
  }
}

function assertNever(command: never): never {
  throw new Error(`unknown command ${JSON.stringify(command)}`);
}
