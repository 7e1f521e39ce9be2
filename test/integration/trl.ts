/** TRL's own trainer and Baton's on the same script, data, seeds and settings. */
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import { Baton, fixtures, root } from "./baton.js";
import { python } from "./light.js";

export const tinyModel = join(root, "python/src/baton/examples/tiny_model");
export const RANKS = 2;

export interface Training {
  readonly zero: 2 | 3;
  /** Of GRPOConfig. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Of peft's LoraConfig. */
  readonly lora?: Readonly<Record<string, unknown>>;
  /** Further wishes, see test/fixtures/trl. */
  readonly more?: Readonly<Record<string, unknown>>;
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
    model: tinyModel,
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
      `deepspeed_config: {deepspeed_config_file: ${folder}/deepspeed.json, zero3_init_flag: ${training.zero === 3}}`,
      "distributed_type: DEEPSPEED",
      "machine_rank: 0",
      "main_training_function: main",
      "num_machines: 1",
      `num_processes: ${RANKS}`,
    ].join("\n"),
    "options.json": JSON.stringify(options),
    "train.py": script,
    "hooks.py": readFileSync(join(fixtures, "trl/hooks.py"), "utf8"),
    "recipe.yaml": [
      `engine: {model: ${tinyModel}, tensorParallel: 2, dtype: float32, maxModelLength: 64, maxSequences: 32}`,
      "gpus: {simulated: {memoryBytes: 256MiB}}",
      `out: ${folder}/out`,
    ].join("\n"),
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const launch = ["-m", "accelerate.commands.launch", "--config_file", join(folder, "accelerate.yaml")];
  // Of its own, so that trainings can run side by side.
  const port = 20_000 + (process.pid % 20_000) + ports++;
  return [
    python,
    ...launch,
    "--main_process_port",
    String(port),
    join(folder, "train.py"),
    join(folder, "options.json"),
  ];
}

let ports = 0;
const script = readFileSync(join(fixtures, "trl/train.py"), "utf8");

const environment = {
  BATON_PYTHON: python,
  DS_ACCELERATOR: "cpu",
  CUDA_VISIBLE_DEVICES: "",
  OMP_NUM_THREADS: "1",
  HF_HUB_OFFLINE: "1",
  PYTHONWARNINGS: "ignore",
  PATH: [dirname(python), process.env.PATH].join(delimiter),
};

const logOf = (folder: string): Log => JSON.parse(readFileSync(join(folder, "log.json"), "utf8")) as Log;

/** TRL's trainer, which generates with transformers. */
export async function trainWithTrl(folder: string, training: Training): Promise<Log> {
  const command = prepare(folder, training, script, { destroy: true });
  const [program = "", ...words] = command;
  const env = { ...process.env, ...environment, PYTHONPATH: join(root, "python/src") };
  await promisify(execFile)(program, words, { env, timeout: 300_000, maxBuffer: 2 ** 26 });
  return logOf(folder);
}

/** The same under `baton run`, with BatonGRPOTrainer. */
export function startBaton(folder: string, training: Training, change = (text: string) => text): Baton {
  const command = prepare(folder, training, change(forBaton(script)), {});
  return new Baton(
    folder,
    ["run", join(folder, "recipe.yaml"), "--ranks", String(RANKS), "--", ...command],
    environment,
  );
}

export async function trainWithBaton(folder: string, training: Training): Promise<{ log: Log; baton: Baton }> {
  const baton = startBaton(folder, training);
  const { code, output } = await baton.ended;
  if (code !== 0) throw new Error(output.slice(-5000));
  return { log: logOf(folder), baton };
}
