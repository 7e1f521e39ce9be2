/** Prompts of the ranks of one group become one request for their engine. */
import { BatonError } from "../errors.js";
import type { Sampling } from "../protocol/messages.js";

/** What one rank asked for. */
export interface RankPrompts {
  /** Global rank: it seeds the samples, and errors name it. */
  readonly rank: number;
  /** Token ids of all prompts, one after another, 4 bytes each as they came (so not at a multiple of 4). */
  readonly tokens: Uint8Array;
  /** Length of each prompt. */
  readonly lengths: Uint32Array;
  readonly sampling: Sampling;
}

/** Of a token id and of a logprob. */
export const WORD_BYTES = 4;

/** Where the samples of a rank's prompts are in the answer. */
export interface RankRoute {
  readonly rank: number;
  /** For each of its prompts: the prompt of the request that answers it … */
  readonly prompt: Uint32Array;
  /** … and the first of its samples there; the rank's own `n` follow. */
  readonly firstSample: Uint32Array;
}

export interface GatheredRequest {
  readonly tokens: Uint32Array;
  readonly lengths: Uint32Array;
  /** How many samples of each prompt: n for every time that the group asked for it. */
  readonly samples: Uint32Array;
  /** Number that seeds the samples of each prompt. */
  readonly streams: Uint32Array;
  /** With a seed in any case. */
  readonly sampling: Sampling & { readonly seed: number };
  readonly routes: readonly RankRoute[];
}

/** Prompts of one rank that streams can tell apart. */
export const MAX_PROMPTS_PER_RANK = 1 << 20;
const STREAM_RANKS = 1 << 12;

/**
 * Gathers the prompts of a group, in the order of `ranks`. Prompts that are equal are sent once, with their
 * samples added; the first rank that asked for one gets its first samples.
 *
 * The stream of a prompt comes from the rank and the position of its first asker, so samples depend neither on
 * how the engine batches nor on how many prompts others have.
 *
 * @param drawSeed called when the ranks leave the seed open; must give a whole number from 0 to 2^53 - 1
 * @throws BatonError SAMPLING_DIFFERS, EMPTY_PROMPT, PROMPTS_INVALID, TOO_MANY_PROMPTS
 */
export function gather(ranks: readonly RankPrompts[], drawSeed: () => number): GatheredRequest {
  const first = ranks[0];
  if (first === undefined) throw new RangeError("a group has at least one rank");
  let promptCount = 0;
  let tokenCount = 0;
  for (const rank of ranks) {
    checkSampling(first, rank);
    checkPrompts(rank);
    promptCount += rank.lengths.length;
    tokenCount += rank.tokens.byteLength / WORD_BYTES;
  }

  const tokens = new Uint32Array(tokenCount);
  const lengths = new Uint32Array(promptCount);
  const samples = new Uint32Array(promptCount);
  const streams = new Uint32Array(promptCount);
  const distinct = new DistinctPrompts(tokens, lengths);
  const n = first.sampling.n;
  const routes = ranks.map((rank): RankRoute => {
    const prompt = new Uint32Array(rank.lengths.length);
    const firstSample = new Uint32Array(rank.lengths.length);
    const streamBase = (rank.rank % STREAM_RANKS) * MAX_PROMPTS_PER_RANK;
    let start = 0;
    for (let position = 0; position < rank.lengths.length; position++) {
      const end = start + (rank.lengths[position] as number) * WORD_BYTES;
      const known = distinct.count;
      const at = distinct.add(rank.tokens.subarray(start, end));
      if (at === known) streams[at] = streamBase + position;
      prompt[position] = at;
      firstSample[position] = samples[at] as number;
      samples[at] = (samples[at] as number) + n;
      start = end;
    }
    return { rank: rank.rank, prompt, firstSample };
  });

  return {
    tokens: tokens.subarray(0, distinct.tokenCount),
    lengths: lengths.subarray(0, distinct.count),
    samples: samples.subarray(0, distinct.count),
    streams: streams.subarray(0, distinct.count),
    sampling: { ...first.sampling, seed: first.sampling.seed ?? drawSeed() },
    routes,
  };
}

/**
 * The prompts seen so far, written one after another into arrays that are large enough for all. A new one is written
 * first and looked up there, where its words are aligned; one that is known is overwritten by the next.
 */
class DistinctPrompts {
  count = 0;
  tokenCount = 0;
  private readonly starts: number[] = [];
  /** Last prompt with this hash, and for each prompt the one before it with the same hash (-1: none). */
  private readonly lastByHash = new Map<number, number>();
  private readonly previous: number[] = [];
  private readonly bytes: Buffer;

  constructor(
    private readonly tokens: Uint32Array,
    private readonly lengths: Uint32Array,
  ) {
    this.bytes = Buffer.from(tokens.buffer, tokens.byteOffset, tokens.byteLength);
  }

  /** The position of this prompt, appended when it is new. */
  add(prompt: Uint8Array): number {
    this.bytes.set(prompt, this.tokenCount * WORD_BYTES);
    const length = prompt.byteLength / WORD_BYTES;
    const hash = hashTokens(this.tokens, this.tokenCount, this.tokenCount + length);
    const last = this.lastByHash.get(hash) ?? -1;
    for (let at = last; at !== -1; at = this.previous[at] as number) {
      if (this.equals(at, prompt, length)) return at;
    }
    const at = this.count++;
    this.lengths[at] = length;
    this.starts.push(this.tokenCount);
    this.previous.push(last);
    this.lastByHash.set(hash, at);
    this.tokenCount += length;
    return at;
  }

  private equals(at: number, prompt: Uint8Array, length: number): boolean {
    if (this.lengths[at] !== length) return false;
    const start = (this.starts[at] as number) * WORD_BYTES;
    return this.bytes.compare(prompt, 0, prompt.byteLength, start, start + prompt.byteLength) === 0;
  }
}

/**
 * Every token counts, or prompts with a common beginning (a system prompt) would all meet in one bucket. Four hashes
 * side by side: each step of one waits for the step before.
 */
function hashTokens(tokens: Uint32Array, begin: number, end: number): number {
  let a = end - begin;
  let b = 1;
  let c = 2;
  let d = 3;
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    a = mix(a, tokens[i] as number);
    b = mix(b, tokens[i + 1] as number);
    c = mix(c, tokens[i + 2] as number);
    d = mix(d, tokens[i + 3] as number);
  }
  for (; i < end; i++) a = mix(a, tokens[i] as number);
  return mix(mix(mix(a, b), c), d);
}

function mix(hash: number, token: number): number {
  const mixed = Math.imul(hash ^ token, 0x9e3779b1);
  return mixed ^ (mixed >>> 15);
}

function checkSampling(first: RankPrompts, other: RankPrompts): void {
  const differing = (Object.keys(first.sampling) as (keyof Sampling)[]).find(
    (key) => JSON.stringify(first.sampling[key]) !== JSON.stringify(other.sampling[key]),
  );
  if (differing === undefined) return;
  throw new BatonError({
    code: "SAMPLING_DIFFERS",
    message: `ranks ${first.rank} and ${other.rank} generate together with different sampling (${differing})`,
    expected: `${differing} ${JSON.stringify(first.sampling[differing])}, as on rank ${first.rank}`,
    found: `${differing} ${JSON.stringify(other.sampling[differing])} on rank ${other.rank}`,
    action: "Call generate with the same sampling on all ranks of a tensor-parallel group.",
  });
}

function checkPrompts(rank: RankPrompts): void {
  if (rank.lengths.length > MAX_PROMPTS_PER_RANK) {
    throw new BatonError({
      code: "TOO_MANY_PROMPTS",
      message: `rank ${rank.rank} has too many prompts in one call of generate`,
      expected: `at most ${MAX_PROMPTS_PER_RANK}`,
      found: `${rank.lengths.length}`,
      action: "Call generate several times.",
    });
  }
  let total = 0;
  for (let position = 0; position < rank.lengths.length; position++) {
    const length = rank.lengths[position] as number;
    if (length === 0) {
      throw new BatonError({
        code: "EMPTY_PROMPT",
        message: `prompt ${position} of rank ${rank.rank} has no tokens`,
        expected: "at least one token",
        found: "none",
        action: "Put a beginning-of-sequence token there, or leave the prompt out.",
      });
    }
    total += length;
  }
  if (total * WORD_BYTES !== rank.tokens.byteLength) {
    throw new BatonError({
      code: "PROMPTS_INVALID",
      message: `the lengths of rank ${rank.rank}'s prompts do not add up to its tokens`,
      expected: `${rank.tokens.byteLength / WORD_BYTES} tokens`,
      found: `${total}`,
      action: "Use the same version of Baton in every process of the run.",
    });
  }
}
