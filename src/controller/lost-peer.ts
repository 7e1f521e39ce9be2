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
  /** It has said why it ends: it gives up, or it is finished. */
  readonly spoke: () => boolean;
}

/** What these say of a connection, and whose end may be behind it. */
const LOST: Readonly<Record<string, Client["role"]>> = { PEER_LOST: "rank", ENGINE_WORKER_DIED: "worker" };
/**
 * Until one is seen to end; until the kernel has told how the first of them ended, for which it may take a second where
 * there is memory on a GPU; and until what it said before its end has been read.
 */
const CAUSE_MS = { poll: 5, ending: 500, exit: 1_000, words: 20 };
const UNKNOWN: ProcessExit = { code: null, signal: null };

/**
 * The death that a lost connection is the consequence of. The failure as it is when it is another one, or when nobody of
 * this node is found dead in time: its peer was on another node, or the network broke.
 *
 * @param from who reported the failure: an engine has lost one of its own workers
 */
export async function causeOfLostPeer(
  failure: Failure,
  from: Client | null,
  members: readonly MemberEnd[],
  phase: NodePhase,
): Promise<Failure> {
  const role = LOST[failure.code];
  if (role === undefined) return failure;
  const suspects = members.filter(({ client }) => {
    if (client.role !== role) return false;
    return client.role !== "worker" || from?.role !== "engine" || client.engine === from.index;
  });
  if ((await within(CAUSE_MS.ending, () => silentlyEnding(suspects)[0])) === undefined) return failure;
  await within(CAUSE_MS.exit, () => {
    const exits = silentlyEnding(suspects).map((one) => one.exit());
    return exits.some((exit) => aftermath(exit, role) === 0) || !exits.includes(null) ? true : undefined;
  });
  await sleep(CAUSE_MS.words);
  const [dead] = silentlyEnding(suspects).sort((a, b) => aftermath(a.exit(), role) - aftermath(b.exit(), role));
  if (dead === undefined) return failure;
  const cause = died(dead.client, dead.exit() ?? UNKNOWN, phase);
  return { ...cause, found: `${cause.found}; then ${failure.message} (${failure.found})` };
}

/** Those that end without a word. Whoever gives up because of them ends too, but says so or is told to end. */
function silentlyEnding(members: readonly MemberEnd[]): MemberEnd[] {
  return members.filter((one) => one.ended() && !one.spoke());
}

/**
 * How likely an end is what came of another one; 0: it came of none. An engine that lost a worker ends the others, by
 * SIGTERM or in order; NCCL's watchdog aborts a process whose peer is gone.
 */
function aftermath(exit: ProcessExit | null, role: Client["role"]): number {
  if (exit === null) return 1;
  if (exit.signal === "SIGABRT") return 3;
  if (exit.signal === "SIGTERM" && role === "worker") return 4;
  if (exit.signal !== null) return 0;
  return exit.code === 0 ? 5 : 2;
}

async function within<T>(ms: number, look: () => T | undefined): Promise<T | undefined> {
  for (const end = performance.now() + ms; ; ) {
    const found = look();
    if (found !== undefined || performance.now() >= end) return found;
    await sleep(CAUSE_MS.poll);
  }
}
