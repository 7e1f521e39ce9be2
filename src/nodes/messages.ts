/**
 * What the controllers of several nodes say to each other. Node 0 has the hub; every controller, node 0's own too, is a
 * member and talks to the hub alone.
 */
import { z } from "zod";
import { count, failure, index } from "../protocol/messages/fields.js";

/** A change of any message here changes it. */
export const LINK_VERSION = 2;

const hex = z.string().regex(/^[0-9a-f]{64}$/);
const node = index;
/** What must be the same on every node, by name. */
const facts = z.record(z.string().max(200), z.string().max(4_000));
/** Of the command that starts the ranks, as far as it should be the same everywhere. */
const words = z.array(z.string().max(1_000)).max(1_000);
const failureOrNone = z.union([failure, z.null()]);
/** Of a node's summary.json. The controllers are of one version, so its shape is known. */
const report = z.record(z.string(), z.unknown());

export const fromMember = z.discriminatedUnion("type", [
  /** Answers the challenge. `nonce` is the member's own challenge, `instance` the same in every try of one controller. */
  z.object({
    ...{ type: z.literal("join"), link: z.int(), node, host: z.string().max(300) },
    ...{ instance: hex, nonce: hex, proof: hex },
  }),
  z.object({ type: z.literal("identity"), facts, command: words }),
  /** In place of an identity: this node does not begin. Answered by `refused`, as on every other node. */
  z.object({ type: z.literal("refusal"), failure }),
  /** As the node's ranks see themselves; `first`: RANK of its local rank 0. */
  z.object({ type: z.literal("ranks"), first: index, local: count, world: count }),
  z.object({ type: z.literal("phase"), phase: z.string().max(40) }),
  /** This node's run is over by itself; failure null: in good order. */
  z.object({ type: z.literal("ended"), failure: failureOrNone }),
  /** Nothing of it runs any more. `failure`: what it failed of by itself, as its user would read it; null: nothing. */
  z.object({ type: z.literal("stopped"), failure: failureOrNone }),
  z.object({ type: z.literal("report"), folder: z.string(), report }),
  z.object({ type: z.literal("beat") }),
]);

export const fromHub = z.discriminatedUnion("type", [
  z.object({ type: z.literal("challenge"), link: z.int(), nonce: hex }),
  z.object({ type: z.literal("welcome"), proof: hex }),
  /** Every node is there, and all are alike; `warning`: but for something that may be meant so. */
  z.object({ type: z.literal("begin"), run: z.string(), warning: z.union([z.string(), z.null()]) }),
  z.object({ type: z.literal("refused"), failure }),
  /** The run is over on this node too. `node`: whose failure it is; null: it is one of all together. */
  z.object({ type: z.literal("end"), node: z.union([node, z.null()]), failure }),
  /** What the run ended of; failure null: in good order, on every node. */
  z.object({ type: z.literal("verdict"), node: z.union([node, z.null()]), failure: failureOrNone }),
  /** Phase of each node; null: not known. */
  z.object({ type: z.literal("phases"), phases: z.array(z.union([z.string(), z.null()])) }),
  /** To node 0: what every node reports; null: it is gone. */
  z.object({
    type: z.literal("reports"),
    nodes: z.array(
      z.object({ host: z.string(), folder: z.union([z.string(), z.null()]), report: z.union([report, z.null()]) }),
    ),
  }),
  z.object({ type: z.literal("beat") }),
]);

export type FromMember = z.infer<typeof fromMember>;
export type FromHub = z.infer<typeof fromHub>;
export type Facts = z.infer<typeof facts>;
export type Report = z.infer<typeof report>;
