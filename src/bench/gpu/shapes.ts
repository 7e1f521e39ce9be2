/** The models that are measured: Qwen2.5's sizes with random weights, or any config.json. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { BatonError } from "../../errors.js";

/** What Qwen2.5's config.json say, as far as sizes go. */
const QWEN = {
  "0.5b": { hidden_size: 896, intermediate_size: 4864, num_hidden_layers: 24, num_attention_heads: 14, vocab: 151_936 },
  "1.5b": {
    hidden_size: 1536,
    intermediate_size: 8960,
    num_hidden_layers: 28,
    num_attention_heads: 12,
    vocab: 151_936,
  },
  "7b": {
    hidden_size: 3584,
    intermediate_size: 18_944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    vocab: 152_064,
  },
  "14b": {
    hidden_size: 5120,
    intermediate_size: 13_824,
    num_hidden_layers: 48,
    num_attention_heads: 40,
    vocab: 152_064,
  },
  /** For machines without a GPU. */
  tiny: { hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 8, vocab: 512 },
} as const;
/** Key-value heads of those that have more than two. */
const KEY_VALUE_HEADS: Readonly<Record<string, number>> = { "7b": 4, "14b": 8, tiny: 8 };
/** Those whose output has weights of its own. */
const UNTIED: readonly string[] = ["7b", "14b"];
export const SHAPES = Object.keys(QWEN) as ShapeName[];
export type ShapeName = keyof typeof QWEN;

export interface Shape {
  readonly name: string;
  /** Folder with config.json. */
  readonly folder: string;
  /** Parameters, tied ones once; null: the layout of this config.json is not known here. */
  readonly parameters: number | null;
}

/** Writes the shape's config.json below `out`. */
export function generatedShape(name: ShapeName, out: string): Shape {
  const { vocab, ...sizes } = QWEN[name];
  const config = {
    architectures: ["Qwen2ForCausalLM"],
    model_type: "qwen2",
    ...sizes,
    num_key_value_heads: KEY_VALUE_HEADS[name] ?? 2,
    vocab_size: vocab,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-6,
    rope_theta: 1e6,
    hidden_act: "silu",
    tie_word_embeddings: !UNTIED.includes(name),
    use_sliding_window: false,
    attention_dropout: 0,
    initializer_range: 0.02,
    bos_token_id: 1,
    eos_token_id: 2,
    torch_dtype: "bfloat16",
  };
  const folder = join(out, "models", name);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  return { name, folder, parameters: parametersOf(config) };
}

/**
 * The shape of a model folder.
 *
 * @throws BatonError MODEL_NOT_FOUND
 */
export function givenShape(folder: string): Shape {
  const path = join(resolve(folder), "config.json");
  try {
    const config = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    return { name: basename(resolve(folder)), folder: resolve(folder), parameters: parametersOf(config) };
  } catch (error) {
    throw new BatonError({
      code: "MODEL_NOT_FOUND",
      message: `${path} cannot be read`,
      expected: "the config.json of a model",
      found: error instanceof Error ? error.message : String(error),
      action: "Give the folder of a model to --model.",
    });
  }
}

/** Of a dense decoder of Qwen2's or Llama's layout; biases and norms, a thousandth, are left out. */
function parametersOf(config: Readonly<Record<string, unknown>>): number | null {
  const of = (key: string): number => Number(config[key]);
  const heads = of("num_attention_heads");
  const head = Number(config.head_dim ?? of("hidden_size") / heads);
  const hidden = of("hidden_size");
  const attention = 2 * hidden * head * heads + 2 * hidden * head * Number(config.num_key_value_heads ?? heads);
  const embedding = of("vocab_size") * hidden * (config.tie_word_embeddings === true ? 1 : 2);
  const total = of("num_hidden_layers") * (attention + 3 * hidden * of("intermediate_size")) + embedding;
  return Number.isFinite(total) ? Math.round(total) : null;
}
