/** What goes wrong between nodes, in the words that the user reads; and which of several failures was the first. */
import type { Failure } from "../protocol/messages.js";

/** A failure and the node that it happened on; node null: it is one of all nodes together. */
export interface Blamed {
  readonly node: number | null;
  readonly failure: Failure;
}

/** @param strangers hosts whose controllers were turned away because of their key */
export function nodeMissing(
  missing: readonly number[],
  count: number,
  ms: number,
  strangers: readonly string[],
): Failure {
  const who = missing.map((node) => `node ${node}`).join(", ");
  return {
    code: "NODE_MISSING",
    message: `${who} did not come within ${ms} ms`,
    expected: `${count} nodes, within ${ms} ms of each other (nodes.meetMs)`,
    found: [`nothing from ${who}`, ...strangers.map((host) => `a controller on ${host} that has another key`)].join(
      "; ",
    ),
    action:
      "Read the output there: it may have been refused, or cannot reach node 0 (nodes.address, the port after nodes.port).",
  };
}

export function hubUnreachable(address: string, port: number, ms: number, found: string): Failure {
  return {
    code: "NODE_MISSING",
    message: `node 0 could not be reached within ${ms} ms`,
    expected: `its controller at ${address}:${port}`,
    found,
    action: "Start it there too; check nodes.address and nodes.port, and that no firewall is between the nodes.",
  };
}

export function nodeLost(node: number, found: string): Failure {
  return {
    code: "NODE_LOST",
    message: `the controller of node ${node} is gone`,
    expected: "a controller on every node until the run is over",
    found,
    action: "Read the output there: the machine or its job step may have been ended. Everything of the run has ended.",
  };
}

/** What a node says whose run ended because of another one. */
export function nodeFailed({ node, failure }: Blamed): Failure {
  if (node === null || failure.code === "NODE_LOST") return failure;
  return {
    code: "NODE_FAILED",
    message: `node ${node} ended the run: ${failure.code}: ${failure.message}`,
    expected: failure.expected,
    found: failure.found,
    action: `On node ${node}: ${failure.action}`,
  };
}

export function nodeTwice(node: number, hosts: readonly string[]): Failure {
  return {
    code: "NODE_TWICE",
    message: `two controllers say that they are node ${node}`,
    expected: "one controller a node, each with its own number",
    found: `one on ${hosts.join(", and one on ")}`,
    action: "Give each node its own number: nodes.rank, PET_NODE_RANK, or one Slurm task a node.",
  };
}

/** What the others are told of a node that does not begin. */
export function refusedThere(node: number, host: string, failure: Failure): Failure {
  return {
    code: "NODE_FAILED",
    message: `node ${node} (${host}) did not begin: ${failure.code}: ${failure.message}`,
    expected: failure.expected,
    found: failure.found,
    action: `On node ${node}: ${failure.action}`,
  };
}

export function numberTooLarge(node: number, host: string, count: number): Failure {
  return {
    code: "NODES_DIFFER",
    message: `the nodes count themselves differently`,
    expected: `nodes 0 to ${count - 1}, as node 0 counts them`,
    found: `node ${node} on ${host}`,
    action: "Start the same command with the same nodes.count on every node.",
  };
}

/** @param expected version of the link here; found: there */
export function otherLink(expected: number, found: number, host: string): Failure {
  return {
    code: "NODES_DIFFER",
    message: "the nodes have different versions of Baton",
    expected: `version ${expected} of what controllers say to each other`,
    found: `version ${found} on ${host}`,
    action: "Install the same version of Baton on every node.",
  };
}

export function keyDiffers(): Failure {
  return {
    code: "NODES_KEY_DIFFERS",
    message: "the nodes do not have the same key",
    expected: "the same secret on every node, or none on any (nodes.keyFile, BATON_NODES_KEY)",
    found: "another one, or one only on one side",
    action: "Give every node the same key.",
  };
}

export function worldsDiffer(expected: string, found: string): Failure {
  return {
    code: "NODES_RANKS_DIFFER",
    message: "the ranks of the nodes are not one training job",
    expected,
    found,
    action:
      "Give the launcher of every node --nnodes, --node-rank, --master-addr and --master-port of the same job; to " +
      "accelerate also --deepspeed_multinode_launcher standard.",
  };
}

export function notFinished(nodes: readonly number[], ms: number): Failure {
  const who = nodes.map((node) => `node ${node}`).join(", ");
  return {
    code: "DEADLINE",
    message: `${who} did not finish within ${ms} ms of the first node that did`,
    expected: `all nodes finished within ${ms} ms (deadlines.trainMs)`,
    found: `${who} still running`,
    action: "Look at what the command does there after session.finish(), or raise deadlines.trainMs.",
  };
}

/**
 * How near a failure is to its cause: when one process dies, others learn of it through their collectives, and say so
 * at about the same time. A node that is gone comes first, then whoever died or waited in vain, then launchers that gave
 * up and processes that their communication library aborted, and then exceptions.
 */
function distance({ code, found }: Failure): number {
  if (code === "NODE_LOST") return 0;
  if (code === "UNEXPECTED_ERROR" || code === "PEER_LOST") return 3;
  if (code === "LAUNCHER_FAILED" || found.includes("SIGABRT")) return 2;
  return 1;
}

/**
 * Whether a node that hears of it from another had better look for its own first: it may be what came of something here;
 * and a scheduler's signal comes to all nodes, one after another.
 */
export function mayBeOurs(failure: Failure): boolean {
  return distance(failure) >= 2 || failure.code === "INTERRUPTED";
}

/** The one nearest to the cause; of equals, the first. */
export function rootOf(failures: readonly Blamed[]): Blamed | null {
  return failures.reduce<Blamed | null>(
    (best, one) => (best === null || distance(one.failure) < distance(best.failure) ? one : best),
    null,
  );
}
