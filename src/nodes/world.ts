/** Whether the ranks of all nodes are one job of `torch.distributed`. */
import type { Failure } from "../protocol/messages.js";
import { worldsDiffer } from "./failures.js";

/** As the ranks of one node see themselves. */
export interface NodeRanks {
  /** RANK of its local rank 0. */
  readonly first: number;
  readonly local: number;
  readonly world: number;
}

/**
 * The first thing that does not fit, or null. Each node alone must be a part of something larger; all together, once
 * all are known, must be the whole, without a gap.
 */
export function checkWorld(count: number, nodes: readonly ({ readonly node: number } & NodeRanks)[]): Failure | null {
  for (const { node, local, world } of nodes) {
    if (world <= local) {
      return worldsDiffer(`ranks of ${count} nodes in one job`, `a job of its own on node ${node}, of ${world} ranks`);
    }
  }
  if (nodes.length < count) return null;
  const total = nodes.reduce((sum, { local }) => sum + local, 0);
  const inOrder = [...nodes].sort((a, b) => a.first - b.first);
  let next = 0;
  for (const { node, first, local, world } of inOrder) {
    if (world !== total || first !== next) {
      return worldsDiffer(
        `${total} ranks, of which node ${node} has ${local} from rank ${next} on`,
        `a job of ${world} ranks there, from rank ${first} on`,
      );
    }
    next += local;
  }
  return null;
}
