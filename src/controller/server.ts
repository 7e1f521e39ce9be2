/**
 * The controller's end of the socket: who is connected, what they say, and how they end.
 *
 * A process that dies is noticed by its pidfd, and its connection ends at about the same time. Both are told, in the
 * order in which they come; what they mean together is for the state machine to decide.
 */
import { timingSafeEqual } from "node:crypto";
import { BatonError, toBatonError } from "../errors.js";
import { type Channel, closeDescriptor, listen, openPidfd, type Pidfd } from "../native.js";
import { type Client, clientName } from "../phases/clients.js";
import type { ProcessExit } from "../phases/events.js";
import { decodeFromClient, encodeMessage, encodePieces } from "../protocol/frames.js";
import { type Failure, type FromClient, type FromController, PROTOCOL_VERSION } from "../protocol/messages.js";
import { exitOf } from "./exits.js";

export type Hello = Extract<FromClient, { type: "hello" }>;
export type MessageAfterHello = Exclude<FromClient, { type: "hello" }>;

const HELLO_MS = 10_000;

export interface ServerHandlers {
  /** A hello with the right token and protocol, from a client that was not there yet. */
  connected(connection: Connection): void;
  /** The receiver owns the descriptors. */
  message(connection: Connection, message: MessageAfterHello, descriptors: number[]): void;
  died(connection: Connection, exit: ProcessExit): void;
  /** Its connection ended; every frame that it sent has been given to `message`. */
  lost(connection: Connection): void;
  /** Something came that no client of ours sends. connection null: before a good hello. */
  invalid(connection: Connection | null, failure: Failure): void;
  /** A connection that is not of this run was turned away. */
  refused(failure: Failure): void;
}

/** One client: its connection and its process. */
export class Connection {
  readonly client: Client;
  readonly name: string;
  readonly hello: Hello;
  readonly pid: number;
  readonly #channel: Channel;
  /** It has its welcome; before that nothing else may be sent to it. */
  welcomed = false;
  /** It has said why it ends: it gives up, or it is finished. */
  spoke = false;
  /** How its process ended; null: it lives, or the kernel has not said so yet. */
  exit: ProcessExit | null = null;

  constructor(client: Client, hello: Hello, channel: Channel) {
    this.client = client;
    this.name = clientName(client);
    this.hello = hello;
    this.pid = channel.peer.pid;
    this.#channel = channel;
  }

  /**
   * Queues a frame; a connection that has ended takes it and drops it. The descriptors stay the caller's; large
   * binary fields are not copied and must not change any more.
   */
  send(message: FromController, descriptors: readonly number[] = []): void {
    if (message.type === "welcome") this.welcomed = true;
    try {
      this.#channel.send(encodePieces(message), descriptors);
    } catch (error) {
      // The end of the connection is reported by itself, with its cause.
      if (!isClosed(error)) throw error;
    }
  }

  close(): void {
    this.#channel.close();
  }
}

function isClosed(error: unknown): boolean {
  return error instanceof BatonError && error.code === "CHANNEL_CLOSED";
}

export class Server {
  readonly #token: Buffer;
  readonly #handlers: ServerHandlers;
  readonly #connections = new Map<string, Connection>();
  readonly #pidfds = new Set<Pidfd>();
  readonly #listener: { close(): void };
  #closed = false;

  constructor(socketPath: string, token: string, handlers: ServerHandlers) {
    this.#token = Buffer.from(token);
    this.#handlers = handlers;
    this.#listener = listen(socketPath, (channel) => this.#accept(channel));
  }

  /** The client of this name, also when it has ended. */
  find(client: Client): Connection | undefined {
    return this.#connections.get(clientName(client));
  }

  get connections(): readonly Connection[] {
    return [...this.#connections.values()];
  }

  /** To every client; a ping only to those that have their welcome. */
  broadcast(message: FromController): void {
    for (const connection of this.#connections.values()) {
      if (connection.welcomed || message.type !== "ping") connection.send(message);
    }
  }

  close(): void {
    this.#closed = true;
    this.#listener.close();
    for (const connection of this.#connections.values()) connection.close();
    for (const pidfd of this.#pidfds) pidfd.close();
  }

  #accept(channel: Channel): void {
    const refuse = (failure: Failure): void => {
      clearTimeout(timer);
      channel.onFrame = closeAll;
      channel.onClose = () => {};
      channel.send(encodeMessage({ type: "shutdown", failure }));
      channel.close();
      this.#handlers.refused(failure);
    };
    const timer = setTimeout(() => {
      refuse(refusal("HELLO_MISSING", "A connection said nothing.", "a hello frame", `nothing in ${HELLO_MS} ms`));
    }, HELLO_MS);
    channel.onClose = () => clearTimeout(timer);
    channel.onFrame = (payload, descriptors) => {
      clearTimeout(timer);
      for (const descriptor of descriptors) closeDescriptor(descriptor);
      try {
        const hello = decodeFromClient(payload);
        if (hello.type !== "hello" || !this.#isToken(hello.token)) {
          refuse(
            refusal("NOT_OF_THIS_RUN", "A connection was turned away.", "a hello with this run's token", hello.type),
          );
          return;
        }
        this.#greet(channel, hello, refuse);
      } catch (error) {
        refuse(toBatonError(error, "PROTOCOL_ERROR").toFields());
      }
    };
  }

  #isToken(token: string): boolean {
    const given = Buffer.from(token);
    return given.length === this.#token.length && timingSafeEqual(given, this.#token);
  }

  #greet(channel: Channel, hello: Hello, refuse: (failure: Failure) => void): void {
    if (hello.protocol !== PROTOCOL_VERSION) {
      const failure = refusal(
        "PROTOCOL_VERSION",
        `A ${hello.role} speaks another version of the protocol.`,
        `version ${PROTOCOL_VERSION}`,
        `version ${hello.protocol} (baton ${hello.version})`,
      );
      refuse(failure);
      this.#handlers.invalid(null, failure);
      return;
    }
    const connection = new Connection(clientOf(hello), hello, channel);
    const before = this.#connections.get(connection.name);
    if (before !== undefined) {
      const failure = refusal(
        "CLIENT_TWICE",
        `Two processes say that they are ${connection.name}.`,
        `one process (${before.pid})`,
        `another one (${connection.pid})`,
        "Start each rank once. A script that attaches twice must detach first.",
      );
      refuse(failure);
      this.#handlers.invalid(null, failure);
      return;
    }
    this.#connections.set(connection.name, connection);
    channel.onFrame = (payload, descriptors) => this.#frame(connection, payload, descriptors);
    this.#watch(connection, channel);
    this.#handlers.connected(connection);
  }

  #frame(connection: Connection, payload: Buffer, descriptors: number[]): void {
    let message: FromClient;
    try {
      message = decodeFromClient(payload);
    } catch (error) {
      closeAll(payload, descriptors);
      this.#handlers.invalid(connection, toBatonError(error, "PROTOCOL_ERROR").toFields());
      return;
    }
    if (message.type === "hello") {
      closeAll(payload, descriptors);
      this.#handlers.invalid(
        connection,
        refusal("PROTOCOL_ERROR", `${connection.name} said hello twice.`, "one hello", "a second one"),
      );
      return;
    }
    if (message.type === "failed" || message.type === "goodbye") connection.spoke = true;
    if (message.type !== "exported") closeAll(payload, descriptors.splice(0));
    this.#handlers.message(connection, message, descriptors);
  }

  #watch(connection: Connection, channel: Channel): void {
    channel.onClose = () => {
      if (!this.#closed) this.#handlers.lost(connection);
    };
    const died = (): void => {
      if (this.#closed) return;
      connection.exit = exitOf(connection.pid);
      this.#handlers.died(connection, connection.exit);
    };
    try {
      const pidfd = openPidfd(connection.pid);
      this.#pidfds.add(pidfd);
      pidfd.onExit = () => {
        died();
        this.#pidfds.delete(pidfd);
        pidfd.close();
      };
    } catch {
      // Gone already, before it could be watched.
      setImmediate(died);
    }
  }
}

function closeAll(_payload: Buffer, descriptors: number[]): void {
  for (const descriptor of descriptors) closeDescriptor(descriptor);
}

/** Ranks are known by their local rank. */
function clientOf(hello: Hello): Client {
  if (hello.role === "worker") {
    if (hello.engine === null) throw missingField(hello, "engine");
    return { role: "worker", engine: hello.engine, index: hello.index };
  }
  if (hello.role === "engine") return { role: "engine", index: hello.index };
  if (hello.localRank === null) throw missingField(hello, "localRank");
  return { role: "rank", index: hello.localRank };
}

function missingField(hello: Hello, field: string): BatonError {
  return new BatonError(
    refusal("PROTOCOL_ERROR", `The hello of a ${hello.role} is not complete.`, `a value for ${field}`, "null"),
  );
}

function refusal(code: string, message: string, expected: string, found: string, action?: string): Failure {
  return { code, message, expected, found, action: action ?? "Use the same version of Baton in every process." };
}
