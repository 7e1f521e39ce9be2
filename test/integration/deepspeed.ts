/** Runs of real DeepSpeed ranks with a small random model: slower to start than light ones, faster than the demo. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Baton, fixtures } from "./baton.js";
import { partOf, python } from "./light.js";

export interface DeepSpeedShape {
  readonly ranks: number;
  readonly engines: number;
  readonly tensorParallel: number;
  readonly zero: 1 | 2 | 3;
  readonly dtype: "float32" | "bfloat16";
  /** As `dtype` when it is left out. */
  readonly engineDtype?: "float32" | "bfloat16";
  /** Output embedding of its own, or the input's. */
  readonly tied: boolean;
  /** Key-value heads; the model has 4 heads. */
  readonly keyValueHeads: 1 | 2 | 4;
  /** ZeRO-3 keeps small parameters whole, as DeepSpeed does by itself. */
  readonly defaultThreshold?: boolean;
  readonly steps?: number;
  readonly pauseSeconds?: number;
  readonly lora?: boolean;
  /** This node of two; `ranks` and `engines` are those of one. */
  readonly place?: { readonly node: number; readonly port: number };
  /** DeepSpeed's own collectives within a node go through shared memory, as under its own launcher. */
  readonly sharedMemory?: boolean;
  readonly environment?: Readonly<Record<string, string>>;
  /** Elements of a hidden state; the rest follows. 40 makes a model that fits a granule. */
  readonly hidden?: number;
  /** More words for `baton run`. */
  readonly words?: readonly string[];
}

/** Sizes that 3 ranks do not divide: partitions end inside of rows, and at odd elements. */
export function writeModel(
  folder: string,
  {
    tied,
    keyValueHeads,
    dtype,
    hidden = 40,
  }: Pick<DeepSpeedShape, "tied" | "keyValueHeads" | "hidden"> & {
    readonly dtype: string;
  },
): string {
  const model = join(folder, "model");
  mkdirSync(model);
  const config = {
    architectures: ["Qwen2ForCausalLM"],
    model_type: "qwen2",
    vocab_size: 132,
    hidden_size: hidden,
    intermediate_size: 2.5 * hidden,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: keyValueHeads,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    tie_word_embeddings: tied,
    hidden_act: "silu",
    torch_dtype: dtype,
    bos_token_id: null,
    eos_token_id: null,
  };
  writeFileSync(join(model, "config.json"), JSON.stringify(config));
  return model;
}

/** By a recipe, and by torchrun: the demo has the command line and accelerate. */
export function deepspeedRun(folder: string, shape: DeepSpeedShape): Baton {
  const { ranks, engines, tensorParallel, zero, dtype, engineDtype = dtype, place } = shape;
  const model = writeModel(folder, shape);
  const recipe = join(folder, "recipe.yaml");
  writeFileSync(
    recipe,
    [
      // Relative to the recipe, not to where the run is started.
      `engine: {model: ./model, engines: ${engines}, tensorParallel: ${tensorParallel}, dtype: ${engineDtype},`,
      "  maxModelLength: 32, maxSequences: 16}",
      "gpus: {simulated: {memoryBytes: 16MiB}}",
      `ranks: ${ranks}`,
      ...(place === undefined
        ? []
        : [`nodes: {count: 2, rank: ${place.node}, address: 127.0.0.1, port: ${place.port}, meetMs: 60000}`]),
      `out: ${join(folder, "out")}`,
    ].join("\n"),
  );
  const script = ["--model", model, "--zero", String(zero), "--dtype", dtype, "--steps", String(shape.steps ?? 2)];
  if (shape.defaultThreshold) script.push("--default-threshold");
  if (shape.lora) script.push("--lora");
  const meeting =
    place === undefined
      ? ["--standalone"]
      : [
          ...["--nnodes", "2", "--node-rank", String(place.node)],
          ...["--master-addr", "127.0.0.1", "--master-port", String(place.port)],
        ];
  return new Baton(
    folder,
    [
      ...["run", recipe, "--log", ...(shape.words ?? []), "--", python, "-m", "torch.distributed.run", ...meeting],
      ...["--nproc-per-node", String(ranks), join(fixtures, "deepspeed_rank.py"), ...script],
      ...["--pause-seconds", String(shape.pauseSeconds ?? 0)],
    ],
    {
      BATON_PYTHON: python,
      ...(shape.sharedMemory === false || place !== undefined ? {} : { LOCAL_SIZE: String(ranks) }),
      ...shape.environment,
    },
    join(folder, "out", partOf(place?.node ?? 0)),
  );
}
