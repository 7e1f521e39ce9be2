/** `baton demo`: the whole thing with a tiny model, on stand-in GPUs where there are no real ones. */
import { join, resolve } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { pythonPath } from "../native.js";
import { checkStart, parseOverride, recipeFrom } from "../recipe/index.js";
import type { RecipeInput } from "../recipe/schema.js";
import { execute } from "./execute.js";
import { hasNvidiaDriver } from "./gpus.js";
import { atLeastOne, setOption } from "./options.js";
import { packageRoot } from "./package.js";
import { freePort } from "./port.js";
import { setup } from "./setup.js";

interface DemoOptions {
  readonly ranks: number;
  readonly engines: number;
  readonly tp: number;
  readonly zero: "1" | "2" | "3";
  readonly steps: number;
  readonly seed: number;
  readonly learningRate?: number;
  readonly iterations?: number;
  readonly gpuMemory: string;
  readonly dtype: "float32" | "bfloat16";
  readonly out: string;
  readonly set: readonly string[];
}

/** Prompt and answer of the little sums are far shorter. */
const MAX_MODEL_LENGTH = 64;
const MAX_SEQUENCES = 256;

const whole = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("expected a whole number");
  return value;
};
const decimal = (text: string): number => {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("expected a number");
  return value;
};

export function addDemo(program: Command): void {
  program
    .command("demo")
    .description("train a tiny policy with GRPO: every GPU trains and generates in turn")
    .option("--ranks <n>", "training ranks, one GPU each", atLeastOne, 8)
    .option("--engines <n>", "engines", atLeastOne, 2)
    .option("--tp <n>", "tensor parallelism of each engine", atLeastOne, 4)
    .addOption(new Option("--zero <stage>", "ZeRO stage").choices(["1", "2", "3"]).default("3"))
    .option("--steps <n>", "batches to generate and to train on", atLeastOne, 12)
    .option("--seed <n>", "seed of the problems and of the samples", whole, 0)
    .option("--learning-rate <x>", "learning rate (default: the script's)", decimal)
    .option("--iterations <n>", "optimizer steps on each batch (default: the script's)", atLeastOne)
    .option("--gpu-memory <bytes>", "memory of each stand-in GPU", "24MiB")
    .addOption(
      new Option("--dtype <type>", "type of the policy and of the engines")
        .choices(["float32", "bfloat16"])
        .default("bfloat16"),
    )
    .option("--out <dir>", "folder for events.jsonl, trace.json, summary.json", "baton-out")
    .addOption(setOption())
    .action(async (options: DemoOptions) => {
      process.exitCode = await demo(options);
    });
}

async function demo(options: DemoOptions): Promise<number> {
  const real = await hasNvidiaDriver();
  const model = join(pythonPath(), "baton/examples/tiny_model");
  const input: RecipeInput = {
    engine: {
      kind: "small",
      model,
      engines: options.engines,
      tensorParallel: options.tp,
      dtype: options.dtype,
      maxModelLength: MAX_MODEL_LENGTH,
      maxSequences: MAX_SEQUENCES,
    },
    gpus: {
      count: Math.max(options.ranks, options.engines * options.tp),
      simulated: real ? null : { memoryBytes: options.gpuMemory },
    },
    ranks: options.ranks,
    // The small model's logits are small, so bfloat16 may be judged more strictly than it can be in general.
    checks: options.dtype === "bfloat16" ? { logprobMaxBound: 0.2, logprobMeanBound: 0.01 } : {},
    out: options.out,
  };
  const recipe = recipeFrom(input, process.cwd(), options.set.map(parseOverride));
  checkStart(recipe, process.env);
  const python = await setup({
    packageRoot,
    folder: process.cwd(),
    environment: process.env,
    hasGpu: real,
    trains: true,
    say: (line) => process.stderr.write(`${line}\n`),
  });
  const { exitCode } = await execute({
    place: null,
    recipe,
    command: await demoCommand(python.path, options, model),
    out: resolve(recipe.out),
    python: python.path,
    logCommand: true,
  });
  return exitCode;
}

async function demoCommand(python: string, options: DemoOptions, model: string): Promise<string[]> {
  const launch = [python, "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_machines", "1"];
  const script = ["-m", "baton.examples.grpo", "--model", model];
  for (const [flag, value] of [
    ["--zero", options.zero],
    ["--steps", options.steps],
    ["--seed", options.seed],
    ["--dtype", options.dtype],
    ["--learning-rate", options.learningRate],
    ["--iterations", options.iterations],
  ] as const) {
    if (value !== undefined) script.push(flag, String(value));
  }
  return [
    ...launch,
    ...["--num_processes", String(options.ranks), "--main_process_port", String(await freePort())],
    ...script,
  ];
}
