/** What the controller adds to a rollout, against what ranks do without one: all_gather_object over gloo. */
import { RolloutTraffic } from "../controller/rollouts.js";
import { binaryOf } from "../protocol/arrays.js";
import { decodeFromClient, encodeMessage } from "../protocol/frames.js";
import type { FromClient } from "../protocol/messages.js";
import { gloo } from "./processes.js";
import { type BenchRow, benchRow, percentile } from "./row.js";

const RANKS = 8;
const PROMPTS = 64;
const TOKENS = 2048;
const ROUNDS = 30;
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
    sampling: { n: 1, temperature: 1, topP: 1, maxTokens: TOKENS, stopTokenIds: [0], seed: 1 },
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

/** All that the controller does between the last prompt's arrival and the last completion's departure. */
function round(prompts: readonly Buffer[], answer: Buffer): number {
  const ranks = prompts.map((_, rank) => rank);
  const start = performance.now();
  const traffic = new RolloutTraffic();
  prompts.forEach((frame, rank) => {
    traffic.prompts(rank, rank, decodeFromClient(frame) as Message<"prompts">);
  });
  encodeMessage(traffic.gather(ranks, 0, 0, 1).message);
  traffic.generated(decodeFromClient(answer) as Message<"generated">);
  for (const { message } of traffic.scatter(ranks, 0, 0, 1)) encodeMessage(message);
  return performance.now() - start;
}

export async function benchGather(python: string, folder: string): Promise<BenchRow[]> {
  const prompts = Array.from({ length: RANKS }, (_, rank) => promptFrame(rank));
  const answer = answerFrame();
  round(prompts, answer);
  const ours = Array.from({ length: ROUNDS }, () => round(prompts, answer));
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
      simulated: false,
      note: "decode, gather, scatter and encode in the controller; limit: the goal; peer: two all_gather_object over gloo",
    }),
  ];
}
