/** The engine's answer becomes each rank's own completions, in its own order. */
import { BatonError } from "../errors.js";
import { type GatheredRequest, type RankRoute, WORD_BYTES } from "./gather.js";

/** Completions one after another: by prompt, then by sample. */
export interface Completions {
  /** Token ids, 4 bytes each as they came (so not at a multiple of 4). */
  readonly tokens: Uint8Array;
  /** Length of each completion. */
  readonly lengths: Uint32Array;
  /** Logprob of each token, a 4-byte float, as the tokens. */
  readonly logprobs: Uint8Array;
  /** For each completion: 0 ended by a stop token, 1 by its length. */
  readonly finish: Uint8Array;
}

export interface RankCompletions extends Completions {
  readonly rank: number;
}

/**
 * Cuts the answer to `request` into one piece for each rank, in the order of `request.routes`.
 *
 * @throws BatonError COMPLETIONS_INVALID when the answer is not one to this request
 */
export function scatter(request: GatheredRequest, answer: Completions): RankCompletions[] {
  checkAnswer(request, answer);
  // First completion of each prompt, and first token of each completion.
  const firstCompletion = prefixSums(request.samples);
  const firstToken = prefixSums(answer.lengths);
  return request.routes.map((route) => slice(route, request.sampling.n, answer, firstCompletion, firstToken));
}

function slice(
  route: RankRoute,
  n: number,
  answer: Completions,
  firstCompletion: Float64Array,
  firstToken: Float64Array,
): RankCompletions {
  const prompts = route.prompt.length;
  let tokenCount = 0;
  let together = true;
  // The n samples of a prompt lie together, so each prompt is one copy.
  const firsts = new Uint32Array(prompts);
  for (let position = 0; position < prompts; position++) {
    const first =
      (firstCompletion[route.prompt[position] as number] as number) + (route.firstSample[position] as number);
    firsts[position] = first;
    together &&= position === 0 || first === (firsts[position - 1] as number) + n;
    tokenCount += (firstToken[first + n] as number) - (firstToken[first] as number);
  }
  if (together && prompts > 0) {
    // No prompt was shared with another rank, as is usual: the rank's piece is a part of the answer as it is.
    const first = firsts[0] as number;
    const begin = (firstToken[first] as number) * WORD_BYTES;
    const end = begin + tokenCount * WORD_BYTES;
    return {
      rank: route.rank,
      tokens: answer.tokens.subarray(begin, end),
      lengths: answer.lengths.subarray(first, first + prompts * n),
      logprobs: answer.logprobs.subarray(begin, end),
      finish: answer.finish.subarray(first, first + prompts * n),
    };
  }
  const result = {
    rank: route.rank,
    tokens: new Uint8Array(tokenCount * WORD_BYTES),
    lengths: new Uint32Array(prompts * n),
    logprobs: new Uint8Array(tokenCount * WORD_BYTES),
    finish: new Uint8Array(prompts * n),
  };
  let at = 0;
  for (let position = 0; position < prompts; position++) {
    const first = firsts[position] as number;
    const begin = (firstToken[first] as number) * WORD_BYTES;
    const end = (firstToken[first + n] as number) * WORD_BYTES;
    result.tokens.set(answer.tokens.subarray(begin, end), at);
    result.logprobs.set(answer.logprobs.subarray(begin, end), at);
    result.lengths.set(answer.lengths.subarray(first, first + n), position * n);
    result.finish.set(answer.finish.subarray(first, first + n), position * n);
    at += end - begin;
  }
  return result;
}

/** Sum of everything before each position, and of all at the end. Exact: sums stay far below 2^53. */
function prefixSums(values: Uint32Array): Float64Array {
  const sums = new Float64Array(values.length + 1);
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    sum += values[i] as number;
    sums[i + 1] = sum;
  }
  return sums;
}

const words = (bytes: Uint8Array): number => bytes.byteLength / WORD_BYTES;

function checkAnswer(request: GatheredRequest, answer: Completions): void {
  const completions = request.samples.reduce((sum, samples) => sum + samples, 0);
  const tokens = answer.lengths.reduce((sum, length) => sum + length, 0);
  const longest = answer.lengths.reduce((most, length) => Math.max(most, length), 0);
  const problems: [boolean, string, string][] = [
    [answer.lengths.length === completions, `${completions} completions`, `${answer.lengths.length}`],
    [answer.finish.length === completions, `${completions} reasons to finish`, `${answer.finish.length}`],
    [words(answer.tokens) === tokens, `${tokens} tokens, by the lengths`, `${words(answer.tokens)}`],
    [words(answer.logprobs) === tokens, `${tokens} logprobs`, `${words(answer.logprobs)}`],
    [longest <= request.sampling.maxTokens, `at most ${request.sampling.maxTokens} tokens a completion`, `${longest}`],
  ];
  const problem = problems.find(([holds]) => !holds);
  if (problem === undefined) return;
  throw new BatonError({
    code: "COMPLETIONS_INVALID",
    message: "the engine's answer does not fit its request",
    expected: problem[1],
    found: problem[2],
    action: "This is an error of the engine's adapter; report it with the events of the run.",
  });
}
