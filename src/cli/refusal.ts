/** What is refused on one node before it has met the others: they hear of it, rather than wait for it. */

import { refuseNodes } from "../controller/nodes.js";
import { toBatonError } from "../errors.js";
import { readKey } from "../nodes/index.js";
import { type NodePlace, nodePlace, nodesSection, type Override, type Recipe } from "../recipe/index.js";

export interface KnownNodes {
  /** This node among several. */
  readonly place: NodePlace;
  readonly nodes: Recipe["nodes"];
}

/** Which node this is, whatever may be wrong with the rest of the recipe; null: alone, or not even that is known. */
export function nodesOf(recipePath: string | null, overrides: readonly Override[]): KnownNodes | null {
  const nodes = nodesSection(recipePath, overrides);
  if (nodes === null) return null;
  try {
    const place = nodePlace({ nodes }, process.env);
    return place === null ? null : { place, nodes };
  } catch {
    return null; // the start is refused for this, among other things
  }
}

/** `act`, which starts nothing. When it is refused, the other nodes are told, and then it is thrown on. */
export async function orTellNodes<T>(known: KnownNodes | null, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    const failure = toBatonError(error).toFields();
    if (known === null || failure.code === "INTERRUPTED") throw error;
    process.stderr.write(`${failure.code} on this node; the other nodes are told of it (Ctrl-C: they are not)\n`);
    const { place, nodes } = known;
    try {
      await refuseNodes({ place, key: readKey(nodes.keyFile, process.env) }, nodes, failure);
    } catch {
      // They wait for nodes.meetMs then. What this node is refused for matters more.
    }
    throw error;
  }
}
