/**
 * A rank that lost the connection to another one says so at once, and so does an engine that lost a worker; whose end
 * it was, the kernel tells a moment later.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Client } from "../phases/clients.js";
import type { NodePhase } from "../phases/commands.js";
import type { ProcessExit } from "../phases/events.js";
import { died } from "../phases/failures.js";
import type { Failure } from "../protocol/messages.js";

/** A rank or a worker of this node, as it is when asked. */
export interface MemberEnd {
  readonly client: Client;
  /** It is dead, or as good as: the kernel takes it apart. */
  readonly ended: () => boolean;
  /** How its process ended; null: not known yet. */
  readonly exit: () => ProcessExit | null;
  /** It has said itself why it gives up. */
  readonly failed: () => boolean;
}

const LOST: ReadonlySet<string> = new Set(["PEER_LOST", "ENGINE_WORKER_DIED"]);
/**
 * Until one is seen to end; until the kernel tells how, for which it may take a second where there is memory on a GPU;
 * and until what it said before its end has been read.
 */
const CAUSE_MS = { poll: 5, ending: 500, exit: 1_000, words: 20 };
const UNKNOWN: ProcessExit = { code: null, signal: null };

/**
 * The death that a lost connection is the consequence of. The failure as it is when it is another one, or when nobody of
 * this node is found dead in time: its peer was on another node, or the network broke.
 */
export async function causeOfLostPeer(
  failure: Failure,
  members: readonly MemberEnd[],
  phase: NodePhase,
): Promise<Failure> {
  if (!LOST.has(failure.code)) return failure;
  if ((await within(CAUSE_MS.ending, () => silentlyEnding(members)[0])) === undefined) return failure;
  await within(CAUSE_MS.exit, () => silentlyEnding(members).find((one) => one.exit() !== null));
  await sleep(CAUSE_MS.words);
  const ended = silentlyEnding(members);
  const dead = ended.find((one) => wasKilled(one.exit())) ?? ended.find((one) => one.exit() !== null) ?? ended[0];
  if (dead === undefined) return failure;
  const cause = died(dead.client, dead.exit() ?? UNKNOWN, phase);
  return { ...cause, found: `${cause.found}; then ${failure.message} (${failure.found})` };
}

/** Those that end without a word. Whoever gives up because of them ends too, but says so or is told to end. */
function silentlyEnding(members: readonly MemberEnd[]): MemberEnd[] {
  return members.filter((one) => one.ended() && !one.failed());
}

/** An engine that lost a worker ends the others itself, by SIGTERM or in order. */
function wasKilled(exit: ProcessExit | null): boolean {
  return exit !== null && exit.signal !== null && exit.signal !== "SIGTERM";
}

async function within<T>(ms: number, look: () => T | undefined): Promise<T | undefined> {
  for (const end = performance.now() + ms; ; ) {
    const found = look();
    if (found !== undefined || performance.now() >= end) return found;
    await sleep(CAUSE_MS.poll);
  }
}
