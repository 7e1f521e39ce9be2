/** `baton grpo` as a user starts it: recipes in full and dry, and what stops one before a GPU is used. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { eventsOf } from "../../src/report/events.js";
import { Baton, type Ended, processesWith, root, withFolder } from "./baton.js";
import { ALL } from "./extent.js";
import { python } from "./light.js";

const examples = join(root, "examples");

interface DryRun {
  readonly recipe: string;
  readonly shape: string | null;
  readonly ranks: number;
  readonly zero: number;
  /** What the report must say of it. */
  readonly says: readonly string[];
  /** Not by default: eight ranks take two minutes on two cores. */
  readonly long?: boolean;
}

const DRY_RUNS: readonly DryRun[] = [
  {
    recipe: "smollm2-135m-lora",
    shape: "smollm2-135m",
    ranks: 1,
    zero: 2,
    says: ["ZeRO-2, LoRA of rank 16", "engine.kind: vllm -> small", "parameters: 134,515,008 -> "],
  },
  {
    recipe: "qwen2.5-7b-zero3",
    shape: "qwen2.5-7b",
    ranks: 8,
    zero: 3,
    says: [
      "8 ranks on 8 GPUs, 2 engines with tensor parallelism 4",
      "ZeRO-3, all parameters, a reference model",
      "28 heads, 4 key-value heads",
      "gsm8k-train.jsonl is not there",
      "rewards: math_verify, format;",
      "--ranks 8 --tp 4 --zero 3",
    ],
    long: true,
  },
  { recipe: "smollm2-135m", shape: "smollm2-135m", ranks: 1, zero: 2, says: ["all parameters"], long: true },
  { recipe: "qwen2.5-7b-zero2", shape: "qwen2.5-7b", ranks: 8, zero: 2, says: ["ZeRO-2"], long: true },
  { recipe: "qwen2.5-14b-lora", shape: "qwen2.5-14b", ranks: 8, zero: 2, says: ["LoRA of rank 32"], long: true },
  // Model and data are here: checked with the model's own tokenizer too.
  { recipe: "demo", shape: null, ranks: 2, zero: 2, says: ["as for a real run", "problems: 2048 -> "], long: true },
];

function grpo(folder: string, ...words: string[]): Baton {
  return new Baton(folder, ["grpo", ...words], { BATON_PYTHON: python, TMPDIR: folder });
}

function expectDone(baton: Baton, ended: Ended): void {
  expect(ended.code, ended.output).toBe(0);
  expect(processesWith(baton.folder)).toEqual([]);
  expect(baton.summary()).toMatchObject({
    simulated: true,
    left: { processes: 0, deviceBytes: 0 },
    exit: { reason: "finished", code: 0 },
    checks: { weightChecksumsFailed: 0 },
  });
  expect(baton.summary().checks.weightChecksumsPassed).toBeGreaterThan(20);
  expect(baton.summary().checks.maxLogprobDifference).toBeLessThan(0.5);
  // Trainer and engine may agree to the last bit (the tiny model does), so that something was compared shows here only.
  const compared = eventsOf(baton.events(), "logprob");
  expect(compared.length).toBeGreaterThan(0);
  for (const { tokens } of compared) expect(tokens).toBeGreaterThan(0);
}

type Metrics = Readonly<Record<string, number | null>>;

function metricsOf(baton: Baton, out = "out"): Metrics[] {
  const text = readFileSync(join(baton.folder, out, "metrics.jsonl"), "utf8");
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Metrics);
}

/** What training itself reports, but for how long it took. */
function trainingOf(lines: readonly Metrics[]): Metrics[] {
  const isTime = (name: string): boolean => /^(time|tokens_per_second)\//.test(name);
  return lines
    .filter((line) => !("held_out/mean" in line))
    .map((line) => Object.fromEntries(Object.entries(line).filter(([name]) => !isTime(name))));
}

describe("a dry run of", { timeout: 600_000 }, () => {
  for (const { recipe, shape, ranks, zero, says, long } of DRY_RUNS) {
    it.skipIf(long === true && !ALL)(recipe, async () => {
      await withFolder(async (folder) => {
        const config = shape === null ? [] : ["--config", join(examples, "shapes", shape)];
        const words = ["--dry-run", ...config, "--out", join(folder, "out")];
        const baton = grpo(folder, join(examples, `${recipe}.yaml`), ...words);
        const ended = await baton.ended;
        expectDone(baton, ended);
        expect(baton.summary().topology).toMatchObject({ ranks, zeroStage: zero });
        expect(baton.summary()).toMatchObject({ batches: 2 });
        for (const text of says) expect(ended.output).toContain(text);
        // What the trainer leaves is where a real run has it, and the small model is gone.
        for (const name of ["metrics.jsonl", "model"]) expect(existsSync(join(baton.out, name)), name).toBe(true);
        expect(existsSync(join(root, "baton-out", recipe))).toBe(false);
      });
    });
  }
});

describe("a whole run of demo.yaml", { timeout: 600_000 }, () => {
  const run = (folder: string, ...words: string[]): Baton =>
    grpo(folder, join(examples, "demo.yaml"), "--out", join(folder, "out"), "--log", ...words);

  it("learns, the same with evaluations and without", async () => {
    await withFolder(async (folder) => {
      const evaluating = ["grpo.batches=6", "grpo.evaluate_every=2", "grpo.held_out_samples=2"];
      const baton = run(folder, ...evaluating.flatMap((value) => ["--set", value]));
      expectDone(baton, await baton.ended);
      const lines = metricsOf(baton);
      const evaluations = lines.filter((line) => "held_out/mean" in line);
      expect(evaluations.map(({ step }) => step)).toEqual([0, 4, 8, 12]);
      for (const line of evaluations) {
        const [low, one, high, two] = ["1_low", "1", "1_high", "2"].map((name) => line[`held_out/pass@${name}`] ?? 0);
        expect(one).toBeCloseTo(line["held_out/mean"] as number, 10);
        expect(low).toBeLessThan(one as number);
        expect(one).toBeLessThan(high as number);
        expect(one).toBeLessThan(two as number);
      }
      const { batches, reward } = baton.summary();
      expect(batches).toBe(6);
      expect(reward.heldOutBefore).toBeLessThan(0.5);
      expect((reward.heldOutAfter ?? 0) - (reward.heldOutBefore ?? 0)).toBeGreaterThan(0.15);

      if (!ALL) return;
      // Another seed of sampling or another state of random numbers would show in every one of these figures.
      const alone = grpo(
        folder,
        ...[join(examples, "demo.yaml"), "--out", join(folder, "alone"), "--log"],
        ...["--set", "grpo.batches=2", "--set", "grpo.held_out=null"],
      );
      expect((await alone.ended).code).toBe(0);
      const untimed = trainingOf(metricsOf(alone, "alone"));
      expect(untimed.length).toBe(2 + 4);
      expect(trainingOf(lines).slice(0, untimed.length)).toEqual(untimed);
    });
  });

  it.runIf(ALL)("ends where trainer and engine disagree about the same tokens", async () => {
    await withFolder(async (folder) => {
      const words = ["grpo", join(examples, "demo.yaml"), "--out", join(folder, "out"), "--log"];
      const faults = { BATON_PYTHON: python, TMPDIR: folder, BATON_FAULTS: "rank.prompts.swap" };
      const baton = new Baton(folder, [...words, "--set", "grpo.batches=2"], faults);
      const { code, output } = await baton.ended;
      expect(code).toBe(1);
      expect(output).toContain("LOGPROB_MISMATCH: ");
      expect(baton.summary().checks.maxLogprobDifference).toBeGreaterThan(0.2);
    });
  });

  // In fp32, where the two must agree to 1e-4: adapters that have taken one step are not large.
  const lora = [
    "grpo.lora.rank=4",
    "engine.dtype=float32",
    "checks.logprobMaxBound=null",
    "checks.logprobMeanBound=null",
  ];
  const withLora = [
    ...lora,
    "grpo.batches=2",
    "grpo.learning_rate=3e-3",
    "grpo.held_out=null",
    "grpo.evaluate_every=null",
  ].flatMap((value) => ["--set", value]);

  it.runIf(ALL)("with adapters under ZeRO-3 gives the engine what is trained", async () => {
    await withFolder(async (folder) => {
      const baton = run(folder, ...withLora, "--set", "grpo.zero_stage=3");
      expectDone(baton, await baton.ended);
      expect(existsSync(join(baton.out, "model/adapter_model.safetensors"))).toBe(true);
    });
  });

  it.runIf(ALL)("ends where adapters are not merged", async () => {
    await withFolder(async (folder) => {
      const words = ["grpo", join(examples, "demo.yaml"), "--out", join(folder, "out"), "--log", ...withLora];
      const faults = { BATON_PYTHON: python, TMPDIR: folder, BATON_FAULTS: "rank.merge.skip" };
      const baton = new Baton(folder, words, faults);
      const { code, output } = await baton.ended;
      expect(code).toBe(1);
      // The sums of ranks and workers agree: both have the base.
      expect(output).toContain("LOGPROB_MISMATCH: ");
      expect(baton.summary().checks.weightChecksumsFailed).toBe(0);
    });
  });

  it.skipIf(!ALL)("goes on from a checkpoint", async () => {
    await withFolder(async (folder) => {
      const first = run(folder, "--set", "grpo.batches=2", "--set", "grpo.checkpoint_every=2");
      expectDone(first, await first.ended);
      const resumed = run(folder, "--resume", "auto", "--set", "grpo.batches=3", "--set", "grpo.checkpoint_every=2");
      const ended = await resumed.ended;
      expectDone(resumed, ended);
      expect(ended.output).toMatch(/from the checkpoint of step 4/);
      expect(resumed.summary().batches).toBe(1);
    });
  });
});

describe("baton grpo", { timeout: 120_000 }, () => {
  it("explains the options", async () => {
    await withFolder(async (folder) => {
      const { code, output } = await grpo(folder, "--options").ended;
      expect(code, output).toBe(0);
      expect(output).toContain("grpo.num_generations: ");
    });
  });

  it("is refused by Python in Baton's words, and leaves earlier results alone", async () => {
    await withFolder(async (folder) => {
      mkdirSync(join(folder, "out"));
      writeFileSync(join(folder, "out/summary.json"), "earlier");
      writeFileSync(join(folder, "broken.py"), "def one(completions):\n    return [1.0]\n");
      const out = ["--out", join(folder, "out")];
      const recipe = join(examples, "demo.yaml");
      for (const [words, code] of [
        [["--set", "grpo.micro_batchs=3"], "BAD_OPTIONS: grpo.micro_batchs"],
        [["--ranks", "3", "--set", "gpus.count=4", "--set", "engine.engines=1"], "BATCH_NOT_DIVISIBLE"],
        [["--set", "grpo.held_out=nowhere.jsonl"], "DATA_NOT_FOUND"],
        [["--set", `grpo.rewards=[{function: "${join(folder, "broken.py")}:one"}]`], "REWARD_LENGTH"],
        [["--set", "engine.dtype=float16"], "GRPO_DTYPE"],
        [["--set", "engine.tensorParallel=3"], "expected: "],
      ] as const) {
        const { code: exit, output } = await grpo(folder, recipe, ...out, ...words).ended;
        expect(exit, output).toBe(1);
        expect(output).toContain(code);
        expect(output).toContain("  action: ");
        expect(readFileSync(join(folder, "out/summary.json"), "utf8")).toBe("earlier");
      }
    });
  });

  it("is ended by Ctrl-C while it reads the data", async () => {
    await withFolder(async (folder) => {
      // Importing it never ends.
      writeFileSync(join(folder, "slow.py"), `import time\nprint("importing", flush=True)\ntime.sleep(1000)\n`);
      const rewards = `grpo.rewards=[{function: "${join(folder, "slow.py")}:f"}]`;
      const baton = grpo(folder, join(examples, "demo.yaml"), "--out", join(folder, "out"), "--set", rewards);
      const waiting = (): number[] => processesWith(folder).filter((pid) => pid !== baton.pid);
      const loads = (pid: number): boolean => {
        try {
          return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("baton.training.grpo.preflight");
        } catch {
          return false;
        }
      };
      while (!waiting().some(loads)) await sleep(50);
      baton.process.kill("SIGINT");
      const { code, output } = await baton.ended;
      expect(code, output).toBe(130);
      expect(output).toContain("INTERRUPTED");
      await expect.poll(waiting).toEqual([]);
    });
  });

  it("without the model or its shape says where a dry run can have it from", async () => {
    await withFolder(async (folder) => {
      const { code, output } = await grpo(folder, join(examples, "qwen2.5-7b-zero2.yaml"), "--dry-run").ended;
      expect(code).toBe(1);
      expect(output).toMatch(/^MODEL_NOT_FOUND[\s\S]*--config/);
    });
  });
});
