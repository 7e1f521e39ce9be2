/** A controller's own part in a run of several nodes: it meets the others, hears of their failures, tells its own. */
import { createConnection, type Socket } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { BatonError } from "../errors.js";
import type { Failure } from "../protocol/messages.js";
import { LinkConnection } from "./connection.js";
import {
  type Blamed,
  hubUnreachable,
  keyDiffers,
  mayBeOurs,
  nodeFailed,
  nodeLost,
  otherLink,
  rootOf,
} from "./failures.js";
import { REPORT_MS, STOP_MS } from "./hub.js";
import { isProof, newNonce, proofOf } from "./key.js";
import { type Facts, type FromHub, type FromMember, fromHub, LINK_VERSION, type Report } from "./messages.js";
import type { NodeRanks } from "./world.js";

const RETRY_MS = 500;
const CONNECT_MS = 5_000;
/** For the challenge and the welcome, which a hub answers at once. */
const GREET_MS = 10_000;
/** So long this node looks for its own failure first (`mayBeOurs`); a death is told within a second all the same. */
const OURS_MS = 400;
/** What the hub needs beyond its own deadlines until its word is here. */
const ON_THE_WAY_MS = 5_000;

/** Where node 0 is, and who comes. */
export interface MeetingPoint {
  readonly node: number;
  readonly address: string;
  readonly port: number;
  readonly key: string;
  readonly silenceMs: number;
}

export interface MemberOptions extends MeetingPoint {
  readonly facts: Facts;
  /** Of the command that starts the ranks, what should be the same everywhere (`sharedWords`). */
  readonly command: readonly string[];
  readonly meetMs: number;
  /** As of the hub. */
  readonly finishMs: number;
  /** For what the user should know while it waits, a line each. */
  readonly say: (line: string) => void;
}

export type NodeReport = Extract<FromHub, { type: "reports" }>["nodes"][number];
/** What the run ended of; failure null: in good order, everywhere. */
type Verdict = { readonly node: number | null; readonly failure: Failure | null };

type ToHub = LinkConnection<FromHub, FromMember>;

export class Member {
  readonly node: number;
  /** Name of the run, the same on all nodes. */
  readonly run: string;
  /** Phase of each node, as far as it is known. Called on node 0 only. */
  onPhases: (phases: readonly (string | null)[]) => void = () => {};
  readonly #connection: ToHub;
  readonly #finishMs: number;
  /** Of the hub; or that it is lost. */
  readonly #verdict = new Later<Verdict | Failure>();
  readonly #reports = new Later<readonly NodeReport[]>();
  #onFailure: ((failure: Failure) => void) | null = null;
  /** Of another node, in the words for this one. */
  #failure: Failure | null = null;
  #ended = false;
  #waiting = false;
  /** An end that another node has told, and that waits for this node's own. */
  #delayed: NodeJS.Timeout | undefined;

  private constructor(connection: ToHub, options: MemberOptions, run: string) {
    this.node = options.node;
    this.run = run;
    this.#connection = connection;
    this.#finishMs = options.finishMs;
    connection.handlers = {
      message: (message) => this.#message(message),
      gone: (found) => this.#hubGone(found),
    };
  }

  /**
   * Waits until all nodes are there, and are alike.
   *
   * @throws BatonError NODE_MISSING, NODES_DIFFER, NODE_TWICE, NODES_KEY_DIFFERS; NODE_FAILED: another does not begin
   */
  static async meet(options: MemberOptions): Promise<Member> {
    const end = performance.now() + options.meetMs;
    const { facts, command } = options;
    const coming: Coming = { instance: newNonce(), says: { type: "identity", facts, command: [...command] } };
    for (let told = false; ; told = true) {
      const met = await attempt(options, coming, options.meetMs);
      if (typeof met !== "string") {
        if (met.warning !== null) options.say(`warning: ${met.warning}`);
        return new Member(met.connection, options, met.run);
      }
      if (performance.now() + RETRY_MS > end) {
        throw new BatonError(hubUnreachable(options.address, options.port, options.meetMs, met));
      }
      if (!told) options.say(`node ${options.node} waits for node 0 at ${options.address}:${options.port} (${met})`);
      await sleep(RETRY_MS);
    }
  }

  /** In place of `meet`: tells node 0, and so all, that this node does not begin. False: it was not there within `ms`. */
  static async refuse(point: MeetingPoint, failure: Failure, ms: number): Promise<boolean> {
    const end = performance.now() + ms;
    const coming: Coming = { instance: newNonce(), says: { type: "refusal", failure } };
    for (;;) {
      try {
        await attempt(point, coming, ON_THE_WAY_MS);
      } catch {
        return true; // that it is refused is the answer
      }
      if (performance.now() + RETRY_MS > end) return false;
      await sleep(RETRY_MS);
    }
  }

  /** `handler` gets the failure that ends the run here because of another node: once, and at once if there is one. */
  onFailure(handler: (failure: Failure) => void): void {
    this.#onFailure = handler;
    if (this.#failure !== null) handler(this.#failure);
  }

  ranks(ranks: NodeRanks): void {
    this.#connection.send({ type: "ranks", ...ranks });
  }

  phase(phase: string): void {
    this.#connection.send({ type: "phase", phase });
  }

  /** The run is over here; failure null: in good order. Called for an end of `onFailure` too. */
  ended(failure: Failure | null): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#delayed);
    if (this.#failure === null) this.#connection.send({ type: "ended", failure });
  }

  /**
   * Nothing of the run is left here. What it ended of, in the words for this node; null: in good order, everywhere.
   *
   * @param failure that of `ended`, with what has been found out since
   */
  async verdict(failure: Failure | null): Promise<Failure | null> {
    this.ended(failure);
    const own = this.#failure === null ? failure : null;
    this.#connection.send({ type: "stopped", failure: own });
    this.#waiting = true;
    const ms = (failure === null ? this.#finishMs : 0) + STOP_MS + ON_THE_WAY_MS;
    const verdict = (await this.#verdict.within(ms)) ?? nodeLost(0, `no verdict of it within ${ms} ms`);
    // The hub has heard of every failure, and its word is the last; without it, what this node itself knows.
    const root = "code" in verdict ? this.#ownRoot(own, verdict) : verdict;
    if (root.failure === null) return null;
    return root.node === this.node ? root.failure : nodeFailed({ node: root.node, failure: root.failure });
  }

  /** The user does not want to wait for the others any longer. */
  interrupted(failure: Failure): void {
    if (this.#waiting) this.#verdict.resolve({ node: this.node, failure });
  }

  #ownRoot(own: Failure | null, lost: Failure): Blamed {
    const all = [...(own === null ? [] : [{ node: this.node, failure: own }]), { node: 0, failure: lost }];
    return rootOf(all) as Blamed;
  }

  /** Sends this node's summary. On node 0: what all nodes sent; elsewhere, and where the hub is silent, null. */
  async report(folder: string, report: Report): Promise<readonly NodeReport[] | null> {
    this.#connection.send({ type: "report", folder, report });
    return this.node === 0 ? this.#reports.within(REPORT_MS + ON_THE_WAY_MS) : null;
  }

  close(): void {
    clearTimeout(this.#delayed);
    this.#connection.close();
  }

  #message(message: FromHub): void {
    switch (message.type) {
      case "end":
        this.#othersFailed(nodeFailed(message), mayBeOurs(message.failure));
        break;
      case "verdict": {
        const { node, failure } = message;
        this.#verdict.resolve({ node, failure });
        break;
      }
      case "reports":
        this.#reports.resolve(message.nodes);
        break;
      case "phases":
        this.onPhases(message.phases);
        break;
      default:
        break; // of a meeting that is over
    }
  }

  #othersFailed(failure: Failure, mayBeOurs: boolean): void {
    if (this.#ended || this.#failure !== null || this.#delayed !== undefined) return;
    const tell = (): void => {
      if (this.#ended) return;
      this.#failure = failure;
      this.#onFailure?.(failure);
    };
    if (mayBeOurs) this.#delayed = setTimeout(tell, OURS_MS);
    else tell();
  }

  #hubGone(found: string): void {
    const lost = nodeLost(0, found);
    this.#othersFailed(lost, false);
    this.#verdict.resolve(lost);
    this.#reports.resolve([]);
  }
}

/** What a controller says to a hub that knows it, and by what the hub knows it again. */
interface Coming {
  readonly instance: string;
  readonly says: Extract<FromMember, { type: "identity" | "refusal" }>;
}

interface Met {
  readonly connection: ToHub;
  readonly run: string;
  readonly warning: string | null;
}

/**
 * One try to meet the hub: its connection once all nodes are there, or what stood against it, which may pass. `ms`: for
 * its answer, once it knows who comes.
 *
 * @throws BatonError what the hub refuses it for
 */
async function attempt(options: MeetingPoint, coming: Coming, ms: number): Promise<Met | string> {
  const socket = await connect(options.address, options.port);
  if (typeof socket === "string") return socket;
  const nonce = newNonce();
  let greeted = "";
  return new Promise((resolve, reject) => {
    const stop = (result: string | BatonError): void => {
      clearTimeout(timer);
      connection.close();
      if (typeof result === "string") resolve(result);
      else reject(result);
    };
    const connection: ToHub = new LinkConnection<FromHub, FromMember>(socket, fromHub, options.silenceMs, {
      gone: (found) => stop(found),
      message: (message) => {
        const { node, key } = options;
        switch (message.type) {
          case "challenge":
            if (message.link !== LINK_VERSION)
              return stop(new BatonError(otherLink(LINK_VERSION, message.link, "node 0")));
            greeted = proofOf("hub", key, message.nonce, nonce, node);
            return connection.send({
              ...{ type: "join", link: LINK_VERSION, node, host: hostname(), instance: coming.instance, nonce },
              proof: proofOf("member", key, message.nonce, nonce, node),
            });
          case "welcome":
            // Only the hub of the run is told the recipe.
            if (greeted === "" || !isProof(message.proof, greeted)) return stop(new BatonError(keyDiffers()));
            connection.trust();
            clearTimeout(timer);
            timer = setTimeout(() => stop("not all nodes came, and node 0 did not say so"), ms + ON_THE_WAY_MS);
            return connection.send(coming.says);
          case "refused":
            return stop(new BatonError(message.failure));
          case "begin":
            clearTimeout(timer);
            return resolve({ connection, run: message.run, warning: message.warning });
          default:
            return stop(`${message.type}, which is out of order`);
        }
      },
    });
    let timer = setTimeout(() => stop("something that does not greet as Baton does"), GREET_MS);
  });
}

/** A socket to this address, or why there is none. */
function connect(host: string, port: number): Promise<Socket | string> {
  return new Promise((resolve) => {
    const socket = createConnection({ host, port });
    const failed = (found: string): void => {
      socket.destroy();
      resolve(found);
    };
    const timer = setTimeout(() => failed("no answer"), CONNECT_MS);
    const onError = (error: NodeJS.ErrnoException): void => {
      clearTimeout(timer);
      failed(error.code ?? error.message);
    };
    socket.once("error", onError);
    socket.once("connect", () => {
      clearTimeout(timer);
      socket.off("error", onError);
      resolve(socket);
    });
  });
}

/** A value that comes once, or not in time. */
class Later<T> {
  readonly #value: Promise<T>;
  resolve: (value: T) => void = () => {};

  constructor() {
    this.#value = new Promise((resolve) => {
      this.resolve = resolve;
    });
  }

  async within(ms: number): Promise<T | null> {
    const timer = new AbortController();
    try {
      return await Promise.race([this.#value, sleep(ms, null, { signal: timer.signal })]);
    } finally {
      timer.abort();
    }
  }
}
