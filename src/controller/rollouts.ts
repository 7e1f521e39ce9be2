/** The traffic of a rollout through the controller: prompts of ranks to engines, completions back. */
import { randomInt } from "node:crypto";
import { BatonError } from "../errors.js";
import { binaryOf, u32s, words } from "../protocol/arrays.js";
import type { FromClient, FromController } from "../protocol/messages.js";
import { type GatheredRequest, gather, type RankPrompts, WORD_BYTES } from "../rollout/gather.js";
import { type Completions, scatter } from "../rollout/scatter.js";

type Message<T extends FromClient["type"]> = Extract<FromClient, { type: T }>;
type ToRank = { readonly rank: number; readonly message: Extract<FromController, { type: "completions" }> };

/** randomInt takes no larger range. */
const SEEDS = 2 ** 48 - 1;

export interface RequestFigures {
  readonly prompts: number;
  readonly samples: number;
}

export class RolloutTraffic {
  /** By local rank and call. */
  readonly #prompts = new Map<string, RankPrompts>();
  readonly #requests = new Map<number, GatheredRequest>();
  readonly #answers = new Map<number, Completions>();

  /** @returns how many prompts */
  prompts(rank: number, globalRank: number, message: Message<"prompts">): number {
    const lengths = u32s(message.lengths, "prompts.lengths");
    this.#prompts.set(`${rank}/${message.call}`, {
      rank: globalRank,
      tokens: words(message.tokens, "prompts.tokens"),
      lengths,
      sampling: message.sampling,
    });
    return lengths.length;
  }

  /**
   * One request of these ranks' prompts, in the order of the ranks.
   *
   * @throws BatonError of `gather`: sampling that differs, an empty prompt, …
   */
  gather(
    ranks: readonly number[],
    call: number,
    request: number,
    epoch: number,
  ): { message: FromController; figures: RequestFigures } {
    const gathered = gather(
      ranks.map((rank) => this.#taken(rank, call)),
      () => randomInt(SEEDS),
    );
    this.#requests.set(request, gathered);
    return {
      message: {
        type: "generate",
        request,
        epoch,
        tokens: binaryOf(gathered.tokens),
        lengths: binaryOf(gathered.lengths),
        sampling: gathered.sampling,
        samples: binaryOf(gathered.samples),
        streams: binaryOf(gathered.streams),
      },
      figures: {
        prompts: gathered.lengths.length,
        samples: gathered.samples.reduce((sum, samples) => sum + samples, 0),
      },
    };
  }

  /** Keeps an engine's answer until it is scattered. @returns generated tokens */
  generated(message: Message<"generated">): number {
    const answer: Completions = {
      tokens: words(message.tokens, "generated.tokens"),
      lengths: u32s(message.lengths, "generated.lengths"),
      logprobs: words(message.logprobs, "generated.logprobs"),
      finish: message.finish,
    };
    this.#answers.set(message.request, answer);
    return answer.tokens.byteLength / WORD_BYTES;
  }

  /**
   * Each rank's own completions.
   *
   * @param request null: no rank had a prompt
   * @throws BatonError COMPLETIONS_INVALID when the answer does not fit the request
   */
  scatter(ranks: readonly number[], call: number, request: number | null, epoch: number): ToRank[] {
    if (request === null) {
      for (const rank of ranks) this.#taken(rank, call);
      return ranks.map((rank) => ({ rank, message: completions(call, epoch, NOTHING) }));
    }
    const gathered = this.#requests.get(request);
    const answer = this.#answers.get(request);
    this.#requests.delete(request);
    this.#answers.delete(request);
    if (gathered === undefined || answer === undefined) throw unknownRequest(request);
    const pieces = scatter(gathered, answer);
    return ranks.map((rank, position) => {
      const piece = pieces[position];
      if (piece === undefined) throw unknownRequest(request);
      return { rank, message: completions(call, epoch, piece) };
    });
  }

  #taken(rank: number, call: number): RankPrompts {
    const key = `${rank}/${call}`;
    const prompts = this.#prompts.get(key);
    if (prompts === undefined) throw new RangeError(`no prompts of rank ${rank} for call ${call}`);
    this.#prompts.delete(key);
    return prompts;
  }
}

const NOTHING: Completions = {
  tokens: new Uint8Array(0),
  lengths: new Uint32Array(0),
  logprobs: new Uint8Array(0),
  finish: new Uint8Array(0),
};

function completions(call: number, epoch: number, of: Completions): ToRank["message"] {
  return {
    type: "completions",
    call,
    epoch,
    tokens: of.tokens,
    lengths: binaryOf(of.lengths),
    logprobs: of.logprobs,
    finish: of.finish,
  };
}

function unknownRequest(request: number): BatonError {
  return new BatonError({
    code: "COMPLETIONS_INVALID",
    message: `An engine answered request ${request}, which is not open.`,
    expected: "an answer to an open request",
    found: `request ${request}`,
    action: "Use the same version of Baton in every process of the run.",
  });
}
