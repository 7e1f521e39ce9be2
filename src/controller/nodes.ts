/** The other nodes of a run, as this controller sees them. */
import { randomBytes } from "node:crypto";
import { BatonError } from "../errors.js";
import { type Facts, Hub, Member, type NodeRanks, sharedWords } from "../nodes/index.js";
import type { Failure } from "../protocol/messages.js";
import type { NodePlace, Recipe } from "../recipe/index.js";
import type { Hello } from "./server.js";

/** What a run on several nodes needs to know of itself. */
export interface NodesPlan {
  readonly place: NodePlace;
  /** Empty: none. */
  readonly key: string;
  readonly facts: Facts;
  /** That starts the ranks, where it is the user's; compared with those of the other nodes. */
  readonly command: readonly string[];
}

/** Nodes start within some seconds of each other; for so long one that does not begin sees to it that the others know. */
const TELL_MS = 60_000;

/**
 * Meets the other nodes, as the hub too on node 0.
 *
 * @param undo gets what must be done when the run is over
 * @throws BatonError as `Member.meet`; NODES_PORT_TAKEN
 */
export async function meetNodes(
  { place, key, facts, command }: NodesPlan,
  recipe: Recipe,
  say: (line: string) => void,
  undo: (() => void)[],
): Promise<Member> {
  const { count, rank, address } = place;
  const { meetMs, silenceMs } = recipe.nodes;
  const common = { port: place.port + 1, key, meetMs, silenceMs, finishMs: recipe.deadlines.trainMs };
  let hub: Hub | null = null;
  if (rank === 0) {
    if (key === "") say(noKey(common.port));
    const own = await Hub.listen({ ...common, count, run: randomBytes(6).toString("hex") });
    hub = own;
    undo.push(() => own.close());
  }
  const own = rank === 0 ? "127.0.0.1" : address;
  try {
    const words = sharedWords(command);
    const member = await Member.meet({ ...common, node: rank, address: own, facts, command: words, say });
    undo.push(() => member.close());
    return member;
  } catch (error) {
    // Those that are late are to hear of it too; but not of a node that was waited for long enough.
    if (!(error instanceof BatonError && error.code === "NODE_MISSING")) await hub?.allTold(tellMs(meetMs));
    throw error;
  }
}

/** Sees to it that the other nodes know that this one does not begin, if they can be reached soon. */
export async function refuseNodes(
  { place, key }: Pick<NodesPlan, "place" | "key">,
  { meetMs, silenceMs }: Recipe["nodes"],
  failure: Failure,
): Promise<void> {
  const { count, rank: node, address } = place;
  const port = place.port + 1;
  if (node !== 0) {
    await Member.refuse({ node, address, port, key, silenceMs }, failure, tellMs(meetMs));
    return;
  }
  const hub = await Hub.listen({ port, key, meetMs, silenceMs, count, run: "", finishMs: meetMs });
  hub.refuse(failure);
  await hub.allTold(tellMs(meetMs));
  hub.close();
}

const tellMs = (meetMs: number): number => Math.min(meetMs, TELL_MS);

function noKey(port: number): string {
  return (
    `the nodes have no key: whoever reaches port ${port} can join, or end, the run ` +
    "(openssl rand -hex 32 > FILE, the same on all nodes, and nodes.keyFile=FILE)"
  );
}

/** Numbers of the ranks of this node among all. They say it themselves: launchers may count as they like. */
export class RankNumbers {
  readonly #tell: ((ranks: NodeRanks) => void) | null;
  #first: number | null = null;

  /** `tell`: gets the numbers once; null: there is no other node. */
  constructor(tell: ((ranks: NodeRanks) => void) | null) {
    this.#tell = tell;
  }

  /** What is wrong with what a client says of itself, or null. */
  see(hello: Hello): Failure | null {
    const { role, index, localRank, worldSize: world, localWorldSize: local } = hello;
    if (role !== "rank" || localRank === null || world === null || local === null) return null;
    const first = index - localRank;
    if (this.#first === null) {
      this.#first = first;
      if (this.#tell === null) return world > local ? elsewhere(world, local) : null;
      this.#tell({ first, local, world });
      return null;
    }
    return first === this.#first ? null : outOfOrder(index, localRank, this.#first);
  }
}

function elsewhere(world: number, local: number): Failure {
  return {
    code: "RANKS_ELSEWHERE",
    message: "the command trains with ranks on other nodes, of which this run knows nothing",
    expected: `a job of the ${local} ranks of this node, or a run of several nodes`,
    found: `a job of ${world} ranks, ${local} of them here`,
    action: "Start the same command on every node, with nodes.count and nodes.rank (docs/multi-node.md).",
  };
}

function outOfOrder(index: number, localRank: number, first: number): Failure {
  return {
    code: "TOPOLOGY_MISMATCH",
    message: `rank ${index} is not numbered as the others of this node are`,
    expected: `rank ${first + localRank} with LOCAL_RANK ${localRank}`,
    found: `rank ${index}`,
    action: "Start the ranks with torchrun or accelerate, which number those of a node in one piece.",
  };
}
