/** The other nodes of a run, as this controller sees them. */
import { randomBytes } from "node:crypto";
import { type Facts, Hub, Member, type NodeRanks } from "../nodes/index.js";
import type { Failure } from "../protocol/messages.js";
import type { NodePlace, Recipe } from "../recipe/index.js";
import type { Hello } from "./server.js";

/** What a run on several nodes needs to know of itself. */
export interface NodesPlan {
  readonly place: NodePlace;
  /** Empty: none. */
  readonly key: string;
  readonly facts: Facts;
}

/**
 * Meets the other nodes, as the hub too on node 0.
 *
 * @param undo gets what must be done when the run is over
 * @throws BatonError as `Member.meet`; NODES_PORT_TAKEN
 */
export async function meetNodes(
  { place, key, facts }: NodesPlan,
  recipe: Recipe,
  say: (line: string) => void,
  undo: (() => void)[],
): Promise<Member> {
  const { count, rank, address } = place;
  const { meetMs, silenceMs } = recipe.nodes;
  const common = { port: place.port + 1, key, meetMs, silenceMs, finishMs: recipe.deadlines.trainMs };
  if (rank === 0) {
    const hub = await Hub.listen({ ...common, count, run: randomBytes(6).toString("hex") });
    undo.push(() => hub.close());
  }
  const own = rank === 0 ? "127.0.0.1" : address;
  const member = await Member.meet({ ...common, node: rank, address: own, facts, say });
  undo.push(() => member.close());
  return member;
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
