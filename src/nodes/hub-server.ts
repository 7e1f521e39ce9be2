/** The shell around the hub: sockets and timers. It decides nothing but who may speak. */
import { createServer, type Server, type Socket } from "node:net";
import { hostname } from "node:os";
import { BatonError } from "../errors.js";
import type { Failure } from "../protocol/messages.js";
import { LinkConnection } from "./connection.js";
import { keyDiffers, otherLink } from "./failures.js";
import {
  allAreTold,
  type HubCommand,
  type HubConfig,
  type HubEvent,
  type HubState,
  type HubTimer,
  hubTransition,
  newHub,
} from "./hub.js";
import { isProof, newNonce, proofOf } from "./key.js";
import { type FromHub, type FromMember, fromMember, LINK_VERSION } from "./messages.js";

/** For whoever has connected to say who it is. */
const HELLO_MS = 10_000;

export interface HubOptions extends HubConfig {
  readonly port: number;
  readonly key: string;
  readonly silenceMs: number;
}

type ToMember = LinkConnection<FromMember, FromHub>;

export class Hub {
  readonly #options: HubOptions;
  readonly #server: Server;
  readonly #members = new Map<number, { readonly instance: string; readonly connection: ToMember }>();
  readonly #strangers = new Set<ToMember>();
  readonly #timers = new Map<HubTimer, NodeJS.Timeout>();
  #state: HubState;
  #onAllTold: () => void = () => {};

  private constructor(options: HubOptions, server: Server) {
    this.#options = options;
    this.#server = server;
    this.#state = newHub(options);
    server.on("connection", (socket) => this.#greet(socket));
    this.#feed({ type: "started" });
  }

  /** @throws BatonError NODES_PORT_TAKEN */
  static async listen(options: HubOptions): Promise<Hub> {
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error: NodeJS.ErrnoException) => reject(portTaken(options.port, error)));
      server.listen(options.port, () => resolve());
    });
    return new Hub(options, server);
  }

  /** Node 0 does not begin, and so nobody does. */
  refuse(failure: Failure): void {
    this.#feed({ type: "refusal", node: 0, host: hostname(), failure });
  }

  /** After a refusal: until all nodes know it, those too that are still on their way; not longer than `ms`. */
  async allTold(ms: number): Promise<void> {
    if (allAreTold(this.#state)) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#onAllTold = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  close(): void {
    this.#server.close();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    for (const { connection } of this.#members.values()) connection.close();
    for (const connection of this.#strangers) connection.close();
  }

  #feed(event: HubEvent): void {
    const { state, commands } = hubTransition(this.#state, event);
    this.#state = state;
    for (const command of commands) this.#execute(command);
    if (allAreTold(state)) this.#onAllTold();
  }

  #execute(command: HubCommand): void {
    switch (command.type) {
      case "send":
        this.#members.get(command.node)?.connection.send(command.message);
        break;
      case "setTimer":
        this.#clear(command.timer);
        this.#timers.set(
          command.timer,
          setTimeout(() => this.#feed({ type: "timeUp", timer: command.timer }), command.ms),
        );
        break;
      case "clearTimer":
        this.#clear(command.timer);
        break;
    }
  }

  #clear(timer: HubTimer): void {
    clearTimeout(this.#timers.get(timer));
    this.#timers.delete(timer);
  }

  /** Challenges whoever connects; only one that has the key is told to the hub. */
  #greet(socket: Socket): void {
    const nonce = newNonce();
    const drop = (): void => {
      clearTimeout(timer);
      this.#strangers.delete(connection);
    };
    const refuse = (failure: Failure): void => {
      drop();
      connection.send({ type: "refused", failure });
      connection.close();
    };
    const connection: ToMember = new LinkConnection(socket, fromMember, this.#options.silenceMs, {
      message: (message) => {
        if (message.type !== "join") {
          drop();
          connection.close();
          return;
        }
        const { node, instance, nonce: theirs, proof, link, host } = message;
        if (link !== LINK_VERSION) return refuse(otherLink(LINK_VERSION, link, host));
        if (!isProof(proof, proofOf("member", this.#options.key, nonce, theirs, node))) {
          this.#feed({ type: "stranger", host });
          return refuse(keyDiffers());
        }
        drop();
        connection.trust();
        connection.send({ type: "welcome", proof: proofOf("hub", this.#options.key, nonce, theirs, node) });
        this.#join(connection, { node, host, instance });
      },
      gone: drop,
    });
    const timer = setTimeout(() => {
      drop();
      connection.close();
    }, HELLO_MS);
    this.#strangers.add(connection);
    connection.send({ type: "challenge", link: LINK_VERSION, nonce });
  }

  #join(connection: ToMember, { node, host, instance }: Joining): void {
    const isMeeting = this.#state.stage === "meeting" || this.#state.stage === "refused";
    const before = this.#members.get(node);
    if (!isMeeting || (before !== undefined && before.instance !== instance)) {
      // While the nodes meet, nobody can tell which of the two is the right one.
      this.#feed({ type: "joined", node, host, instance });
      connection.send({ type: "refused", failure: secondOne(node) });
      connection.close();
      return;
    }
    // The same controller once more: it knows by now that its connection is dead.
    before?.connection.close();
    this.#members.set(node, { instance, connection });
    connection.handlers = {
      message: (message) => {
        const event = eventOf(node, host, message);
        if (event !== null) this.#feed(event);
      },
      gone: (found) => {
        this.#members.delete(node);
        this.#feed({ type: "gone", node, found });
      },
    };
    this.#feed({ type: "joined", node, host, instance });
  }
}

interface Joining {
  readonly node: number;
  readonly host: string;
  readonly instance: string;
}

/** What a message of a member is to the hub; null: nothing. */
function eventOf(node: number, host: string, message: FromMember): HubEvent | null {
  switch (message.type) {
    case "identity":
      return { type: "identity", node, facts: message.facts, command: message.command };
    case "refusal":
      return { type: "refusal", node, host, failure: message.failure };
    case "ranks": {
      const { first, local, world } = message;
      return { type: "ranks", node, ranks: { first, local, world } };
    }
    case "phase":
      return { type: "phase", node, phase: message.phase };
    case "ended":
      return { type: "ended", node, failure: message.failure };
    case "stopped":
      return { type: "stopped", node, failure: message.failure };
    case "report":
      return { type: "report", node, folder: message.folder, report: message.report };
    case "join":
    case "beat":
      return null;
  }
}

function portTaken(port: number, error: NodeJS.ErrnoException): BatonError {
  return new BatonError(
    {
      code: "NODES_PORT_TAKEN",
      message: `Node 0 cannot listen on port ${port}, where the controllers of the other nodes look for it.`,
      expected: "a free port",
      found: error.code ?? error.message,
      action: "Set nodes.port (the controllers meet at the port after it) to another one, on every node.",
    },
    { cause: error },
  );
}

function secondOne(node: number): Failure {
  return {
    code: "NODE_TWICE",
    message: `another controller is node ${node} already`,
    expected: "one controller a node, each with its own number",
    found: `a second node ${node}`,
    action: "Give each node its own number; and end a run that still uses this port.",
  };
}
