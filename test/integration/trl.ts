/** TRL's own trainer and Baton's on the same script, data, seeds and settings. */
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { expect } from "vitest";
import { onMachines } from "./accelerate.js";
import { Baton, fixtures, root } from "./baton.js";
import { CLOCKS, mayDiffer, recordComparison } from "./figures.js";
import { partOf, python } from "./light.js";
import type { Place } from "./two-nodes.js";

export const tinyModel = join(root, "python/src/baton/examples/tiny_model");
export const RANKS = 2;

export interface Training {
  readonly zero: 2 | 3;
  /** Of GRPOConfig. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Of peft's LoraConfig. */
  readonly lora?: Readonly<Record<string, unknown>>;
  /** Of test/fixtures/trl; else train.py. */
  readonly script?: string;
  /** For the trainer and the engines; else the tiny model, and lengths of 64 tokens. */
  readonly model?: { readonly path: string; readonly maxLength: number };
  /** Further wishes, see test/fixtures/trl. */
  readonly more?: Readonly<Record<string, unknown>>;
  /** This node of two, with half of the ranks. */
  readonly place?: Place;
}

export type Log = readonly Readonly<Record<string, number>>[];

/** The script with the two lines changed that a user changes. */
function forBaton(script: string): string {
  const changed = script
    .replace("\nfrom trl import GRPOTrainer\n", "\nfrom baton.trl import BatonGRPOTrainer\n")
    .replace(" = GRPOTrainer(\n", " = BatonGRPOTrainer(\n");
  const lines = script.split("\n");
  const differing = changed.split("\n").filter((line, position) => line !== lines[position]);
  if (differing.length !== 2) throw new Error(`${differing.length} lines changed`);
  return changed;
}

/** What both need in `folder`; the words that start the training there. */
function prepare(folder: string, training: Training, script: string, extra: Record<string, unknown>): string[] {
  mkdirSync(folder, { recursive: true });
  const { place, model = { path: tinyModel, maxLength: 64 } } = training;
  const zero = {
    stage: training.zero,
    // For a model of this size; DeepSpeed's own buckets are of gigabytes.
    reduce_bucket_size: 2 ** 18,
    allgather_bucket_size: 2 ** 18,
    stage3_prefetch_bucket_size: 2 ** 18,
    stage3_param_persistence_threshold: 0,
    stage3_gather_16bit_weights_on_model_save: true,
  };
  const auto = ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"];
  const deepspeed = { ...Object.fromEntries(auto.map((name) => [name, "auto"])), zero_optimization: zero };
  const options = {
    model: model.path,
    output: join(folder, "output"),
    log: join(folder, "log.json"),
    config: { save_strategy: "no", ...training.config },
    lora: training.lora,
    ...training.more,
    ...extra,
  };
  const files = {
    "deepspeed.json": JSON.stringify({ ...deepspeed, steps_per_print: 2 ** 31 }),
    "accelerate.yaml": [
      "compute_environment: LOCAL_MACHINE",
      `deepspeed_config: {deepspeed_config_file: ${folder}/deepspeed.json, zero3_init_flag: ${training.zero === 3},`,
      "  deepspeed_multinode_launcher: standard}",
      "distributed_type: DEEPSPEED",
      "machine_rank: 0",
      "main_training_function: main",
      `num_machines: ${place === undefined ? 1 : 2}`,
      `num_processes: ${RANKS}`,
    ].join("\n"),
    "options.json": JSON.stringify(options),
    "train.py": script,
    "hooks.py": readFileSync(join(fixtures, "trl/hooks.py"), "utf8"),
    "recipe.yaml": [
      `engine: {model: ${model.path}, tensorParallel: ${ranksOf(training)}, dtype: float32,`,
      `  maxModelLength: ${model.maxLength}, maxSequences: 32}`,
      "gpus: {simulated: {memoryBytes: 256MiB}}",
      `out: ${folder}/out`,
      ...(place === undefined
        ? []
        : [`nodes: {count: 2, rank: ${place.node}, address: 127.0.0.1, port: ${place.port}, meetMs: 60000}`]),
    ].join("\n"),
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const launch = ["-m", "accelerate.commands.launch", "--config_file", join(folder, "accelerate.yaml")];
  // Of its own, so that trainings can run side by side.
  const alone = ["--main_process_port", String(20_000 + (process.pid % 20_000) + ports++)];
  const meeting = place === undefined ? alone : onMachines(place);
  return [python, ...launch, ...meeting, join(folder, "train.py"), join(folder, "options.json")];
}

let ports = 0;

const ranksOf = ({ place }: Training): number => (place === undefined ? RANKS : RANKS / 2);

const scriptOf = ({ script = "train.py" }: Training): string => readFileSync(join(fixtures, "trl", script), "utf8");

const environment = {
  BATON_PYTHON: python,
  DS_ACCELERATOR: "cpu",
  CUDA_VISIBLE_DEVICES: "",
  OMP_NUM_THREADS: "1",
  HF_HUB_OFFLINE: "1",
  PYTHONWARNINGS: "ignore",
  PATH: [dirname(python), process.env.PATH].join(delimiter),
};

export const logOf = (folder: string): Log => JSON.parse(readFileSync(join(folder, "log.json"), "utf8")) as Log;

/** TRL's trainer, which generates with transformers. */
export async function trainWithTrl(folder: string, training: Training): Promise<Log> {
  const command = prepare(folder, training, scriptOf(training), { destroy: true });
  const [program = "", ...words] = command;
  const env = { ...process.env, ...environment, PYTHONPATH: join(root, "python/src") };
  await promisify(execFile)(program, words, { env, timeout: 300_000, maxBuffer: 2 ** 26 });
  return logOf(folder);
}

/** The same under `baton run`, with BatonGRPOTrainer. */
export function startBaton(folder: string, training: Training, change = (text: string) => text): Baton {
  const command = prepare(folder, training, change(forBaton(scriptOf(training))), {});
  return new Baton(
    folder,
    ["run", join(folder, "recipe.yaml"), "--ranks", String(ranksOf(training)), "--", ...command],
    environment,
    join(folder, "out", partOf(training.place?.node ?? 0)),
  );
}

export async function trainWithBaton(folder: string, training: Training): Promise<{ log: Log; baton: Baton }> {
  const baton = startBaton(folder, training);
  const { code, output } = await baton.ended;
  if (code !== 0) throw new Error(output.slice(-5000));
  return { log: logOf(folder), baton };
}

/** A random model of TRL's own tests, whose chat template has tools; of 2 layers and 8 hidden dimensions. */
export async function modelForTools(folder: string): Promise<string> {
  mkdirSync(folder, { recursive: true });
  const make = "import local_hub, pathlib, sys; local_hub.make(pathlib.Path(sys.argv[1]))";
  const env = { ...process.env, ...environment, PYTHONPATH: join(root, "test/trl") };
  await promisify(execFile)(python, ["-c", make, folder], { env, timeout: 120_000 });
  return join(folder, "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5");
}

/** TRL's figures but those of the clock, each with Baton's. */
export function expectSame(trl: Log, baton: Log): void {
  recordComparison(trl, baton);
  expect(baton.length).toBe(trl.length);
  for (const [position, line] of trl.entries()) {
    for (const [name, value] of Object.entries(line)) {
      if (CLOCKS.test(name)) continue;
      const close = Math.abs((baton[position]?.[name] ?? Number.NaN) - value) <= mayDiffer(value);
      expect(close, `line ${position}: ${name} ${baton[position]?.[name]} for ${value}`).toBe(true);
    }
  }
}
