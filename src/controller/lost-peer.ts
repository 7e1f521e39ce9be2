/**
 * A rank that lost the connection to another one says so at once; whose end it was, the kernel tells a moment later.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { NodePhase } from "../phases/commands.js";
import type { ProcessExit } from "../phases/events.js";
import { died } from "../phases/failures.js";
import type { Failure } from "../protocol/messages.js";

/** A rank of this node, as it is when asked. */
export interface RankEnd {
  /** Local. */
  readonly index: number;
  /** It is dead, or as good as: the kernel takes it apart. */
  readonly ended: () => boolean;
  /** How its process ended; null: not known yet. */
  readonly exit: () => ProcessExit | null;
  /** It has said itself why it gives up. */
  readonly failed: () => boolean;
}

const LOST_PEER = "PEER_LOST";
/**
 * Until a rank is seen to end; until the kernel tells how, for which it may take a second where there is memory on a GPU;
 * and until what the rank said before its end has been read.
 */
const CAUSE_MS = { poll: 5, ending: 500, exit: 1_000, words: 20 };
const UNKNOWN: ProcessExit = { code: null, signal: null };

/**
 * The death that a lost connection is the consequence of. The failure as it is when it is another one, or when no rank of
 * this node is found dead in time: its peer was on another node, or the network broke.
 */
export async function causeOfLostPeer(failure: Failure, ranks: readonly RankEnd[], phase: NodePhase): Promise<Failure> {
  if (failure.code !== LOST_PEER) return failure;
  if ((await within(CAUSE_MS.ending, () => silentlyEnding(ranks)[0])) === undefined) return failure;
  await within(CAUSE_MS.exit, () => silentlyEnding(ranks).find((rank) => rank.exit() !== null));
  await sleep(CAUSE_MS.words);
  const ended = silentlyEnding(ranks);
  const dead = ended.find((rank) => rank.exit() !== null) ?? ended[0];
  if (dead === undefined) return failure;
  const cause = died({ role: "rank", index: dead.index }, dead.exit() ?? UNKNOWN, phase);
  return { ...cause, found: `${cause.found}; then ${failure.message} (${failure.found})` };
}

/** Those that end without a word. Whoever gives up because of them ends too, but says so. */
function silentlyEnding(ranks: readonly RankEnd[]): RankEnd[] {
  return ranks.filter((rank) => rank.ended() && !rank.failed());
}

async function within<T>(ms: number, look: () => T | undefined): Promise<T | undefined> {
  for (const end = performance.now() + ms; ; ) {
    const found = look();
    if (found !== undefined || performance.now() >= end) return found;
    await sleep(CAUSE_MS.poll);
  }
}
