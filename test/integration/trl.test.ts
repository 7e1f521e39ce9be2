/** BatonGRPOTrainer against TRL's GRPOTrainer, by a script in which two lines differ. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Baton, root, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { python } from "./light.js";
import { errorCodes } from "./remains.js";
import { expectSame, type Log, modelForTools, startBaton, type Training, trainWithBaton, trainWithTrl } from "./trl.js";

const STEPS = ALL ? 10 : 4;

/** Every sample of a problem is the same, so that only entropy and KL move the policy. */
const greedy = {
  per_device_train_batch_size: 4,
  num_generations: 4,
  learning_rate: 1e-3,
  generation_kwargs: { do_sample: false },
  entropy_coef: 0.05,
  max_steps: STEPS,
};
const lora = { r: 4, lora_alpha: 16, target_modules: ["q_proj", "v_proj", "down_proj"] };

interface Pair extends Training {
  readonly name: string;
  readonly long?: boolean;
  /** Each trainer saves in the middle, and the other goes on from there. */
  readonly across?: boolean;
}

const saving = { save_strategy: "steps", save_steps: STEPS / 2 };

const PAIRS: readonly Pair[] = [
  {
    name: "ZeRO-3, a reference model, steps_per_generation 2 with accumulation 4, evaluations",
    zero: 3,
    config: {
      ...greedy,
      beta: 0.04,
      steps_per_generation: 2,
      gradient_accumulation_steps: 4,
      eval_strategy: "steps",
      eval_steps: STEPS / 2,
      per_device_eval_batch_size: 4,
    },
    more: { evaluate: true },
  },
  { name: "ZeRO-3", zero: 3, config: { ...greedy, ...saving }, long: true, across: true },
  { name: "ZeRO-2, a reference model", zero: 2, config: { ...greedy, beta: 0.04 }, long: true },
  {
    name: "ZeRO-2, steps_per_generation 2 with accumulation 4",
    zero: 2,
    config: { ...greedy, steps_per_generation: 2, gradient_accumulation_steps: 4 },
    long: true,
  },
  {
    name: "ZeRO-2, LoRA",
    zero: 2,
    config: { ...greedy, ...saving, learning_rate: 1e-2, beta: 0.04 },
    lora,
    across: true,
    long: true,
  },
  {
    name: "ZeRO-3, LoRA",
    zero: 3,
    // TRL makes it re-entrant here, and torch's threads for that may abort a process on the CPU as it ends.
    config: { ...greedy, learning_rate: 1e-2, beta: 0.04, gradient_checkpointing: false },
    lora,
    long: true,
  },
];

/** The figures of TRL's importance sampling correction, which the engine's logprobs go into. */
function expectEnginesAgree(log: Log): void {
  const ratios = log.flatMap((line) => line["sampling/importance_sampling_ratio/mean"] ?? []);
  expect(ratios.length).toBeGreaterThan(0);
  for (const ratio of ratios) expect(Math.abs(ratio - 1)).toBeLessThan(1e-4);
}

/** `trl` and `baton` have saved in the folders of those names: each trainer goes on from what the other has saved. */
async function expectAcross(folder: string, pair: Pair, trl: Log, baton: Log): Promise<void> {
  const saved = (name: string): string => join(folder, `${name}/output/checkpoint-${STEPS / 2}`);
  // But for the last line, which is of the training that has ended.
  const steps = (log: Log): Log => log.slice(0, -1);
  const fromTrl = { ...pair, more: { ...pair.more, resume: saved("trl") } };
  const rest = await trainWithBaton(join(folder, "from-trl"), fromTrl);
  expectSame(steps(trl), steps(rest.log));
  expect(rest.baton.summary().batches).toBe(STEPS / 2);
  if (!ALL) return;
  const fromBaton = { ...pair, more: { ...pair.more, resume: saved("baton") } };
  const theirs = await trainWithTrl(join(folder, "from-baton"), fromBaton);
  expectSame(steps(theirs), steps(baton));
  // What it makes itself has no figures of an engine.
  const own = theirs.filter(
    (line) => line.loss !== undefined && line["sampling/sampling_logp_difference/mean"] === undefined,
  );
  expect(own).toHaveLength(STEPS / 2);
  for (const name of ["trl", "baton"]) expect(await evaluated(folder, saved(name))).toMatchObject({ problems: 16 });
}

/** What `baton eval` says of a model. */
async function evaluated(folder: string, model: string): Promise<unknown> {
  const data = join(root, "examples/data/sums-held-out.jsonl");
  const words = ["--engine", "transformers", "--limit", "16", "--max-tokens", "6", "--no-resume"];
  const baton = new Baton(
    folder,
    ["eval", "--model", model, "--data", data, "--out", join(folder, "eval"), ...words],
    { BATON_PYTHON: python, CUDA_VISIBLE_DEVICES: "" },
    join(folder, "eval"),
  );
  const { code, output } = await baton.ended;
  expect(code, output).toBe(0);
  return baton.summary();
}

describe("trains as TRL's own trainer does", { timeout: 600_000 }, () => {
  for (const pair of PAIRS) {
    it.skipIf(pair.long === true && !ALL)(pair.name, async () => {
      await withFolder(async (folder) => {
        const trl = await trainWithTrl(join(folder, "trl"), pair);
        const { log, baton } = await trainWithBaton(join(folder, "baton"), pair);
        expect(trl.filter((line) => line.loss !== undefined).length).toBe(pair.config.max_steps);
        expect(new Set(trl.map((line) => line.loss)).size).toBeGreaterThan(STEPS / 2);
        expectSame(trl, log);
        expectEnginesAgree(log);
        expect(baton.summary()).toMatchObject({
          batches: pair.config.max_steps,
          left: { processes: 0, deviceBytes: 0 },
          exit: { reason: "finished", code: 0 },
          checks: { weightChecksumsFailed: 0 },
        });
        if (pair.across === true) await expectAcross(folder, pair, trl, log);
      });
    });
  }
});

/** With samples, so with advantages: TRL's trainer is given the completions that Baton's engines made. */
const sampled = { ...greedy, generation_kwargs: null, entropy_coef: 0, num_generations: 4 };

describe("with sampled completions", { timeout: 600_000 }, () => {
  it.skipIf(!ALL)("trains as TRL's own trainer does on the same ones", async () => {
    await withFolder(async (folder) => {
      const config = { ...sampled, num_iterations: 2, steps_per_generation: 2 };
      mkdirSync(join(folder, "kept"));
      const training = { zero: 2, config } as const;
      const { log } = await trainWithBaton(join(folder, "baton"), {
        ...training,
        more: { record: join(folder, "kept") },
      });
      const trl = await trainWithTrl(join(folder, "trl"), { ...training, more: { replay: join(folder, "kept") } });
      expectSame(trl, log);
      expectEnginesAgree(log);
      expect(Math.max(...log.flatMap((line) => line.reward_std ?? []))).toBeGreaterThan(0.1);
    });
  });

  it.skipIf(!ALL)("goes on from a checkpoint as if it had never stopped", async () => {
    await withFolder(async (folder) => {
      const config = { ...sampled, save_strategy: "steps", save_steps: 4, max_steps: 8 };
      const whole = await trainWithBaton(join(folder, "whole"), { zero: 3, config });
      const resume = join(folder, "whole/output/checkpoint-4");
      const rest = await trainWithBaton(join(folder, "rest"), { zero: 3, config, more: { resume } });
      expectSame(whole.log.slice(0, -1), rest.log.slice(0, -1));
      expect(rest.baton.summary().batches).toBe(4);
    });
  });
});

interface Seen {
  readonly called: readonly (readonly [number, number])[];
  readonly prompted: readonly (readonly string[])[];
  readonly rewarded: readonly (readonly [readonly { role: string; content?: string }[], string])[];
}

describe("with tools and environments, in TRL's own loop", { timeout: 300_000 }, () => {
  it("makes one handoff of a conversation, however many turns each rank needs", async () => {
    await withFolder(async (folder) => {
      const model = { path: await modelForTools(join(folder, "hub")), maxLength: 2048 };
      // Completions are longer than the engine's length, so only that length keeps the last answer out.
      const lengths = { max_completion_length: 4096, generation_kwargs: { max_tokens: 8 } };
      const batch = { per_device_train_batch_size: 2, num_generations: 2, max_steps: 2 };
      const tooLong = [10, 3000];
      const calls = [[[[3, 4], tooLong], [[2, 5]], ["count"], [[]]], [[]]];
      const { baton, log } = await trainWithBaton(join(folder, "baton"), {
        ...{ zero: 2, script: "tools.py", model, config: { ...lengths, ...batch } },
        more: { calls, seen: join(folder, "seen") },
      });
      const [busy, idle] = [0, 1].map((rank) =>
        JSON.parse(readFileSync(join(folder, `seen-${rank}.json`), "utf8")),
      ) as [Seen, Seen];
      const aBatch = [[3, 4], tooLong, [2, 5]];
      expect(busy.called).toEqual([...aBatch, ...aBatch]);
      expect(idle.called).toEqual([]);
      // What the engine was asked to go on from has the answer of the turn before.
      expect(busy.prompted.map((prompts) => prompts.length)).toEqual([2, 1, 1, 1, 2, 1, 1, 1]);
      expect(idle.prompted.map((prompts) => prompts.length)).toEqual([2, 2]);
      expect(busy.prompted[1]?.[0]).toContain("<tool_response>\n81\n</tool_response>");
      expect(busy.prompted[2]?.[0]).toMatch(/<tool_response>\n81\n.*<tool_response>\n32\n/s);
      expect(busy.prompted[0]?.[0]).toMatch(/\? You may count\./);
      const [both, none] = busy.rewarded.map(([messages, text]) => ({ messages, text }));
      expect(both?.messages.map(({ role }) => role)).toEqual([
        ...["assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant"],
      ]);
      expect(both?.messages.flatMap(({ role, content }) => (role === "tool" ? [content] : []))).toEqual([
        ...["81", "32", "counted 1"],
      ]);
      expect(both?.text).toMatch(/81.*32/s);
      expect(none?.messages.map(({ role }) => role)).toEqual(["assistant"]);
      expect(none?.text).not.toContain("<tool_response>");
      const steps = log.filter((line) => line.loss !== undefined);
      expect(steps.map((line) => [line["tools/call_frequency"], line["tools/failure_frequency"]])).toEqual([
        [1, 0],
        [1, 0],
      ]);
      // The environment's own reward: one of four completions has counted, once.
      expect(steps.map((line) => line["rewards/Counter/mean"])).toEqual([0.25, 0.25]);
      expect(baton.summary()).toMatchObject({
        batches: 2,
        handoffs: { toGeneration: 2, toTraining: 2 },
        left: { processes: 0, deviceBytes: 0 },
        exit: { reason: "finished", code: 0 },
        checks: { weightChecksumsFailed: 0 },
      });
    });
  });
});

describe("says at the start what it cannot do", { timeout: 300_000 }, () => {
  it("options that no engine honours, all of them", async () => {
    await withFolder(async (folder) => {
      const config = {
        ...sampled,
        repetition_penalty: 1.5,
        generation_kwargs: { logit_bias: {} },
        vllm_mode: "server",
      };
      const baton = startBaton(join(folder, "baton"), { zero: 2, config });
      const { code, output } = await baton.ended;
      expect(code).toBe(1);
      // What ended the run, not that the launcher ended with an error.
      expect(errorCodes(output), output).toEqual(["UNSUPPORTED_TRL_OPTION"]);
      for (const name of ["repetition_penalty=1.5", "generation_kwargs['logit_bias']", "vllm_mode='server'"]) {
        expect(output).toContain(name);
      }
    });
  });

  it.runIf(ALL)("completions that are longer than what an engine can do, before the model is built", async () => {
    await withFolder(async (folder) => {
      const config = { ...sampled, generation_kwargs: { max_tokens: 64 } };
      // A model that is not there: it is never looked for.
      const baton = startBaton(join(folder, "baton"), { zero: 2, config, more: { model: "/nowhere" } });
      const { code, output } = await baton.ended;
      expect(code).toBe(1);
      expect(errorCodes(output), output).toEqual(["UNSUPPORTED_TRL_OPTION"]);
      expect(output).toContain("Completions of the length asked for do not fit into the engine.");
      expect(output).not.toContain("/nowhere");
    });
  });
});
