/** What the controller adds to a rollout, against what ranks do without one: all_gather_object over gloo. */
import { join } from "node:path";
import { RolloutTraffic } from "../controller/rollouts.js";
import { type Channel, connect, listen } from "../native.js";
import { binaryOf } from "../protocol/arrays.js";
import { decodeFromClient, encodeMessage, encodePieces } from "../protocol/frames.js";
import type { FromClient } from "../protocol/messages.js";
import { gloo } from "./processes.js";
import { type BenchRow, benchRow, percentile } from "./row.js";

const RANKS = 8;
const PROMPTS = 64;
const TOKENS = 2048;
const ROUNDS = 30;
const WARM_UP_ROUNDS = 2;
const PEER_ROUNDS = 3;
const LIMIT_MS = 10;

/** The frames of one rank's prompts, as its process would send them; no two prompts are equal. */
function promptFrame(rank: number): Buffer {
  const tokens = Uint32Array.from({ length: PROMPTS * TOKENS }, (_, i) => (i * 31 + rank * 977) % 150_000);
  return encodeMessage({
    type: "prompts",
    call: 0,
    tokens: binaryOf(tokens),
    lengths: binaryOf(new Uint32Array(PROMPTS).fill(TOKENS)),
    sampling: { n: 1, temperature: 1, topK: 0, topP: 1, minP: 0, maxTokens: TOKENS, stopTokenIds: [0], seed: 1 },
  });
}

/** The engine's answer: a completion as long as its prompt. */
function answerFrame(): Buffer {
  const completions = RANKS * PROMPTS;
  const tokens = Uint32Array.from({ length: completions * TOKENS }, (_, i) => i % 150_000);
  return encodeMessage({
    type: "generated",
    request: 0,
    epoch: 1,
    tokens: binaryOf(tokens),
    lengths: binaryOf(new Uint32Array(completions).fill(TOKENS)),
    logprobs: binaryOf(new Float32Array(completions * TOKENS).fill(-1)),
    finish: new Uint8Array(completions),
    seconds: 1,
  });
}

type Message<T extends FromClient["type"]> = Extract<FromClient, { type: T }>;

/** Connections of which this process holds both ends: so that sending is what it is in a run. */
interface Wires {
  readonly ours: readonly Channel[];
  /** Resolves when the other ends have got this many frames since the last call. */
  arrived(frames: number): Promise<void>;
  close(): void;
}

async function wires(path: string, count: number): Promise<Wires> {
  const ours: Channel[] = [];
  let frames = 0;
  let look = (): void => {};
  const listener = listen(path, (channel) => {
    channel.onFrame = () => {};
    ours.push(channel);
    look();
  });
  const until = (holds: () => boolean): Promise<void> =>
    new Promise((resolve) => {
      look = () => {
        if (holds()) resolve();
      };
      look();
    });
  const theirs = Array.from({ length: count }, () => connect(path));
  for (const channel of theirs) {
    channel.onFrame = () => {
      frames += 1;
      look();
    };
  }
  await until(() => ours.length === count);
  return {
    ours,
    async arrived(wanted) {
      await until(() => frames >= wanted);
      frames -= wanted;
    },
    close() {
      listener.close();
      for (const channel of [...ours, ...theirs]) channel.close(0);
    },
  };
}

/** All that the controller does between the last prompt's arrival and the last completion's departure. */
function round(prompts: readonly Buffer[], answer: Buffer, wires: Wires): number {
  const ranks = prompts.map((_, rank) => rank);
  const start = performance.now();
  const traffic = new RolloutTraffic();
  prompts.forEach((frame, rank) => {
    traffic.prompts(rank, rank, decodeFromClient(frame) as Message<"prompts">);
  });
  wires.ours[RANKS]?.send(encodePieces(traffic.gather(ranks, 0, 0, 1).message));
  traffic.generated(decodeFromClient(answer) as Message<"generated">);
  for (const { rank, message } of traffic.scatter(ranks, 0, 0, 1)) wires.ours[rank]?.send(encodePieces(message));
  return performance.now() - start;
}

async function ourRounds(folder: string): Promise<number[]> {
  const prompts = Array.from({ length: RANKS }, (_, rank) => promptFrame(rank));
  const answer = answerFrame();
  // The ranks and their engine.
  const connections = await wires(join(folder, "gather.sock"), RANKS + 1);
  try {
    const taken: number[] = [];
    for (let i = 0; i < WARM_UP_ROUNDS + ROUNDS; i++) {
      taken.push(round(prompts, answer, connections));
      await connections.arrived(RANKS + 1);
    }
    return taken.slice(WARM_UP_ROUNDS);
  } finally {
    connections.close();
  }
}

export async function benchGather(python: string, folder: string): Promise<BenchRow[]> {
  const ours = await ourRounds(folder);
  const peer = await gloo(python, folder, "gather", RANKS, PEER_ROUNDS, PROMPTS, TOKENS);
  return [
    benchRow({
      subject: "gather and scatter",
      metric: `p50, ${RANKS} x ${PROMPTS} prompts and completions of ${TOKENS} tokens`,
      unit: "ms",
      ours: percentile(ours, 0.5),
      peer: percentile(peer, 0.5) * 1e3,
      limit: LIMIT_MS,
      better: "lower",
      goal: 1,
      simulated: false,
      note: "decode, gather, scatter, encode and send in the controller; limit: the goal; peer: two all_gather_object over gloo",
    }),
  ];
}
