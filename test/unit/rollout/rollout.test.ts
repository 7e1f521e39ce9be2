import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { BatonError } from "../../../src/errors.js";
import type { Sampling } from "../../../src/protocol/messages.js";
import { type GatheredRequest, gather, type RankPrompts } from "../../../src/rollout/gather.js";
import { type Completions, scatter } from "../../../src/rollout/scatter.js";

// None takes a second by itself; machines that build at the same time are slow.
vi.setConfig({ testTimeout: 120_000 });

const SAMPLING: Sampling = {
  n: 1,
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  maxTokens: 16,
  stopTokenIds: [0],
  seed: 5,
};

const bytesOf = (array: Uint32Array | Float32Array): Uint8Array =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/** As a frame brings them: at no multiple of 4. */
const unaligned = (array: Uint32Array | Float32Array): Uint8Array => {
  const bytes = new Uint8Array(array.byteLength + 1);
  bytes.set(bytesOf(array), 1);
  return bytes.subarray(1);
};

const prompts = (
  rank: number,
  lists: readonly (readonly number[])[],
  sampling: Partial<Sampling> = {},
): RankPrompts => ({
  rank,
  tokens: unaligned(Uint32Array.from(lists.flat())),
  lengths: Uint32Array.from(lists, (list) => list.length),
  sampling: { ...SAMPLING, ...sampling },
});

/** Each completion is told by the stream of its prompt and the number of its sample: nothing else may matter. */
function completionOf(stream: number, sample: number): { tokens: number[]; logprobs: number[]; finish: number } {
  const length = (stream * 7 + sample * 3) % 5;
  const tokens = Array.from({ length }, (_, i) => (stream * 1000 + sample * 10 + i) % 2 ** 32);
  return { tokens, logprobs: tokens.map((token) => -(token % 97) / 97), finish: (stream + sample) % 2 };
}

/** An engine that answers a request one completion after another. */
function answer(request: GatheredRequest): Completions {
  const all = Array.from(request.streams, (stream, prompt) =>
    Array.from({ length: request.samples[prompt] ?? 0 }, (_, sample) => completionOf(stream, sample)),
  ).flat();
  return {
    tokens: unaligned(Uint32Array.from(all.flatMap(({ tokens }) => tokens))),
    lengths: Uint32Array.from(all, ({ tokens }) => tokens.length),
    logprobs: unaligned(Float32Array.from(all.flatMap(({ logprobs }) => logprobs))),
    finish: Uint8Array.from(all, ({ finish }) => finish),
  };
}

/** What each rank must get, worked out with maps and lists. */
function reference(group: readonly (readonly (readonly number[])[])[], ranks: readonly number[], n: number) {
  const streams = new Map<string, { stream: number; taken: number }>();
  return group.map((lists, position) =>
    lists.flatMap((list, index) => {
      const key = list.join(",");
      const known = streams.get(key) ?? { stream: (ranks[position] as number) * 2 ** 20 + index, taken: 0 };
      streams.set(key, known);
      return Array.from({ length: n }, () => completionOf(known.stream, known.taken++));
    }),
  );
}

function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof BatonError) return error.code;
    throw error;
  }
  return "nothing was thrown";
}

/** Few tokens and short prompts, so that equal ones are common; now and then long ones. */
const lists = fc.array(
  fc.oneof(
    { weight: 9, arbitrary: fc.array(fc.nat(2), { minLength: 1, maxLength: 3 }) },
    { weight: 1, arbitrary: fc.array(fc.nat(0xffffffff), { minLength: 1, maxLength: 300 }) },
  ),
  { maxLength: 8 },
);
const groups = fc.uniqueArray(fc.nat(4095), { minLength: 1, maxLength: 8 }).chain((ranks) =>
  fc.record({
    ranks: fc.constant(ranks),
    group: fc.array(lists, { minLength: ranks.length, maxLength: ranks.length }),
    n: fc.integer({ min: 1, max: 4 }),
  }),
);

describe("gather and scatter", () => {
  it("give each rank its own completions in its own order", () => {
    fc.assert(
      fc.property(groups, ({ ranks, group, n }) => {
        const request = gather(
          group.map((own, position) => prompts(ranks[position] as number, own, { n })),
          () => 1,
        );
        const pieces = scatter(request, answer(request));
        const expected = reference(group, ranks, n);
        expect(pieces.map(({ rank }) => rank)).toEqual(ranks);
        for (const [position, piece] of pieces.entries()) {
          const own = expected[position] ?? [];
          expect([...new Uint32Array(piece.tokens.slice().buffer)]).toEqual(own.flatMap(({ tokens }) => tokens));
          expect([...piece.lengths]).toEqual(own.map(({ tokens }) => tokens.length));
          expect(new Float32Array(piece.logprobs.slice().buffer)).toEqual(
            Float32Array.from(own.flatMap(({ logprobs }) => logprobs)),
          );
          expect([...piece.finish]).toEqual(own.map(({ finish }) => finish));
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("send each prompt once, with all its samples", () => {
    fc.assert(
      fc.property(groups, ({ ranks, group, n }) => {
        const request = gather(
          group.map((own, position) => prompts(ranks[position] as number, own, { n })),
          () => 1,
        );
        const counts = new Map<string, number>();
        for (const list of group.flat()) counts.set(list.join(","), (counts.get(list.join(",")) ?? 0) + n);
        const sent: [string, number][] = [];
        let start = 0;
        for (const [prompt, length] of request.lengths.entries()) {
          sent.push([request.tokens.subarray(start, start + length).join(","), request.samples[prompt] ?? 0]);
          start += length;
        }
        expect(start).toBe(request.tokens.length);
        expect(sent).toEqual([...counts]);
        expect(new Set(request.streams).size).toBe(request.streams.length);
      }),
    );
  });

  it("seed a prompt by its rank and place, whoever else is in the batch", () => {
    const mine = [[1, 2], [3]];
    const alone = gather([prompts(3, mine)], () => 1);
    const together = gather([prompts(2, [[9], [8], [7]]), prompts(3, mine)], () => 1);
    expect([...together.streams].slice(3)).toEqual([...alone.streams]);
  });

  it("tell prompts apart whose hashes meet", () => {
    // 20,000 random prompts of one length share a 32-bit hash now and then; all must stay distinct.
    const lists = Array.from({ length: 20_000 }, (_, i) => [i, i ^ 0x5555, (i * 2654435761) % 2 ** 32]);
    const request = gather([prompts(0, lists)], () => 1);
    expect(request.lengths.length).toBe(lists.length);
  });

  it("draw a seed when the ranks leave it open, and only then", () => {
    expect(gather([prompts(0, [[1]], { seed: null })], () => 77).sampling.seed).toBe(77);
    const never = (): number => {
      throw new Error("drawn");
    };
    expect(gather([prompts(0, [[1]], { seed: 0 })], never).sampling.seed).toBe(0);
  });

  it("work without any prompt", () => {
    const request = gather([prompts(0, []), prompts(1, [])], () => 1);
    expect(request.lengths.length).toBe(0);
    expect(scatter(request, answer(request)).map(({ lengths }) => lengths.length)).toEqual([0, 0]);
  });

  it.each<[string, Partial<Sampling>]>([
    ["n", { n: 2 }],
    ["temperature", { temperature: 0.5 }],
    ["topK", { topK: 5 }],
    ["topP", { topP: 0.9 }],
    ["minP", { minP: 0.1 }],
    ["maxTokens", { maxTokens: 17 }],
    ["stopTokenIds", { stopTokenIds: [1] }],
    ["seed", { seed: null }],
  ])("refuse a group whose ranks have different %s", (_, sampling) => {
    expect(codeOf(() => gather([prompts(0, [[1]]), prompts(1, [], sampling)], () => 1))).toBe("SAMPLING_DIFFERS");
  });

  it("refuse an empty prompt, and lengths that do not fit the tokens", () => {
    expect(codeOf(() => gather([prompts(0, [[1], []])], () => 1))).toBe("EMPTY_PROMPT");
    const broken = { ...prompts(0, [[1, 2]]), lengths: Uint32Array.of(1) };
    expect(codeOf(() => gather([broken], () => 1))).toBe("PROMPTS_INVALID");
  });

  it("refuse an answer that is not one to the request", () => {
    const request = gather([prompts(0, [[1], [2]], { n: 2 })], () => 1);
    const good = answer(request);
    expect(codeOf(() => scatter(request, good))).toBe("nothing was thrown");
    const longer = { ...request, sampling: { ...request.sampling, maxTokens: 0 } };
    const broken: [GatheredRequest, Completions][] = [
      [request, { ...good, lengths: good.lengths.subarray(1) }],
      [request, { ...good, tokens: good.tokens.subarray(1) }],
      [request, { ...good, logprobs: good.logprobs.subarray(1) }],
      [request, { ...good, finish: good.finish.subarray(1) }],
      [longer, good],
    ];
    for (const [one, bad] of broken) expect(codeOf(() => scatter(one, bad))).toBe("COMPLETIONS_INVALID");
  });
});

describe("gather and scatter of 8 x 64 prompts of 2,048 tokens", () => {
  /**
   * CPU milliseconds of the fastest of some runs: what the code costs, not what else the machine does. On a busy
   * machine, whose caches others use too, one of `enoughMs` may be long in coming.
   */
  function fastest(run: () => void, enoughMs = Number.POSITIVE_INFINITY): number {
    const end = performance.now() + 10_000;
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 25 || (best >= enoughMs && performance.now() < end); i++) {
      const before = process.cpuUsage();
      run();
      const { user, system } = process.cpuUsage(before);
      best = Math.min(best, (user + system) / 1000);
    }
    return best;
  }

  it.each([
    ["all different", 64],
    ["each asked for 8 times", 8],
  ])("takes less than 10 ms, prompts %s", (_, distinct) => {
    const group = Array.from({ length: 8 }, (_, rank) => {
      const tokens = new Uint32Array(64 * 2048);
      for (let i = 0; i < tokens.length; i++) {
        const prompt = Math.floor(i / 2048) % distinct;
        // A long beginning in common, as a system prompt makes it; the end tells prompts apart.
        tokens[i] = i % 2048 < 1500 ? i % 2048 : (rank * 64 + prompt) * 4096 + (i % 2048);
      }
      return { rank, tokens: unaligned(tokens), lengths: new Uint32Array(64).fill(2048), sampling: SAMPLING };
    });
    const request = gather(group, () => 1);
    expect(request.lengths.length).toBe(8 * distinct);
    const completions = 8 * 64;
    const full: Completions = {
      tokens: new Uint8Array(completions * 16 * 4),
      lengths: new Uint32Array(completions).fill(16),
      logprobs: new Uint8Array(completions * 16 * 4),
      finish: new Uint8Array(completions),
    };
    const both = () =>
      scatter(
        gather(group, () => 1),
        full,
      );
    expect(fastest(both, 10)).toBeLessThan(10);
  });

  it("grows in proportion to the tokens, even when every prompt is the same but for its last token", () => {
    const group = (count: number): RankPrompts[] => {
      const tokens = new Uint32Array(count * 128);
      for (let i = 0; i < count; i++) tokens[i * 128 + 127] = i;
      return [{ rank: 0, tokens: bytesOf(tokens), lengths: new Uint32Array(count).fill(128), sampling: SAMPLING }];
    };
    const [small, large] = [group(2_000), group(32_000)];
    const ratio = fastest(() => gather(large, () => 1)) / fastest(() => gather(small, () => 1));
    expect(ratio).toBeLessThan(16 * 4); // quadratic would be 256
  });
});
