import type { Event } from "../../../src/phases/index.js";
import type { Process } from "./processes.js";

/** A message that this client might send, at a moment when it should not. */
export function unasked(process: Process, what: number): Event {
  const { client, world } = process;
  const hello: Event = { type: "hello", client, gpu: client.index, localWorldSize: 1 };
  const seq = 1_000_000;
  const messages: Event[] =
    client.role === "rank"
      ? [
          { type: "released", rank: client.index, seq, releasedBytes: 1 },
          { type: "exported", rank: client.index, seq },
          { type: "resumed", rank: client.index, seq },
          { type: "logprobCheck", rank: client.index, epoch: 99, tokens: 0, maxDifference: null, meanDifference: null },
        ]
      : client.role === "engine"
        ? [
            { type: "awake", engine: client.index, seq, tags: ["weights"] },
            { type: "asleep", engine: client.index, seq },
            { type: "generated", engine: client.index, request: seq, epoch: 0 },
            { type: "verified", engine: client.index, failure: null },
            { type: "goodbye", client },
          ]
        : [
            { type: "planned", engine: client.engine, worker: client.index, seq, sources: [], fallback: null },
            { type: "synced", engine: client.engine, worker: client.index, seq, epoch: 0, compared: [] },
            // With the right number, and yet once too often or too early.
            {
              type: "summed",
              engine: client.engine,
              worker: client.index,
              seq: world.state.engines[client.engine]?.sumsSeq ?? seq,
            },
          ];
  return [hello, ...messages][what % (messages.length + 1)] as Event;
}
