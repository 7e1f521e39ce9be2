/** How many parameters a model has: from its checkpoint where there is one, else from its config.json. */
import { closeSync, openSync, readdirSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { BatonError } from "../errors.js";
import { expectationOf, valueAt } from "../recipe/index.js";

const MOST_HEADER_BYTES = 100 * 2 ** 20;

/** What sizes are computed from. */
export interface ModelShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headSize: number;
  /** null: an architecture whose count cannot be told from config.json. */
  readonly parameters: number | null;
  readonly source: "safetensors" | "config.json" | null;
}

const shape = z.object({
  model_type: z.string().optional(),
  hidden_size: z.int().min(1),
  num_hidden_layers: z.int().min(1),
  num_attention_heads: z.int().min(1),
  num_key_value_heads: z.int().min(1).nullish(),
  head_dim: z.int().min(1).nullish(),
  intermediate_size: z.int().min(1).optional(),
  vocab_size: z.int().min(1).optional(),
  tie_word_embeddings: z.boolean().optional(),
  attention_bias: z.boolean().optional(),
  mlp_bias: z.boolean().optional(),
});
type Shape = z.infer<typeof shape>;

/** Dense decoders whose layers the formula below describes. */
const DENSE = new Set(["llama", "mistral", "qwen2", "qwen3"]);

/**
 * Reads a folder that `readModelConfig` has accepted.
 *
 * @throws BatonError MODEL_CONFIG_INVALID when its config.json has not what sizes are computed from
 */
export function readShape(folder: string): ModelShape {
  const path = join(folder, "config.json");
  const raw = JSON.parse(readFileSync(path, "utf8")) as { text_config?: unknown };
  const described = raw.text_config ?? raw;
  const parsed = shape.safeParse(described);
  if (!parsed.success) {
    const issue = parsed.error.issues[0] as z.core.$ZodIssue;
    const key = issue.path.join(".");
    const found = valueAt(described, issue.path.map(String));
    throw new BatonError({
      code: "MODEL_CONFIG_INVALID",
      message: `${path} has not what the size of a model is computed from`,
      expected: key === "" ? expectationOf(issue) : `\`${key}\`, ${expectationOf(issue)}`,
      found: found === undefined ? "no such key" : JSON.stringify(found),
      action: "Use a decoder model in the layout of Hugging Face.",
    });
  }
  const config = parsed.data;
  const stored = storedParameters(folder);
  const computed = stored === null ? fromConfig(config) : null;
  return {
    layers: config.num_hidden_layers,
    kvHeads: config.num_key_value_heads ?? config.num_attention_heads,
    headSize: headSize(config),
    parameters: stored ?? computed,
    source: stored !== null ? "safetensors" : computed !== null ? "config.json" : null,
  };
}

const headSize = (config: Shape): number =>
  config.head_dim ?? Math.floor(config.hidden_size / config.num_attention_heads);

/** Parameters of a dense decoder, norms and biases included; null for other architectures. */
function fromConfig(config: Shape): number | null {
  const { model_type: type = "", hidden_size: hidden, intermediate_size: inner, vocab_size: vocabulary } = config;
  if (!DENSE.has(type) || inner === undefined || vocabulary === undefined) return null;
  const head = headSize(config);
  const query = config.num_attention_heads * head;
  const keyValue = (config.num_key_value_heads ?? config.num_attention_heads) * head;
  const inputBias = type === "qwen2" || config.attention_bias === true ? query + 2 * keyValue : 0;
  const outputBias = type !== "qwen2" && config.attention_bias === true ? hidden : 0;
  const attention = hidden * (query + 2 * keyValue) + query * hidden + inputBias + outputBias;
  const feedForward = 3 * hidden * inner + (config.mlp_bias === true ? 2 * inner + hidden : 0);
  const norms = 2 * hidden + (type === "qwen3" ? 2 * head : 0);
  const embeddings = vocabulary * hidden * (config.tie_word_embeddings === true ? 1 : 2);
  return config.num_hidden_layers * (attention + feedForward + norms) + embeddings + hidden;
}

/** Elements of all tensors in the folder's safetensors files; null when there are none, or one cannot be read. */
function storedParameters(folder: string): number | null {
  const files = readdirSync(folder).filter((name) => name.endsWith(".safetensors"));
  if (files.length === 0) return null;
  try {
    return files.reduce((sum, name) => sum + elementsOf(join(folder, name)), 0);
  } catch {
    return null;
  }
}

/** The header is a length of 8 bytes, and that much JSON: names, dtypes, shapes. */
function elementsOf(path: string): number {
  const file = openSync(path, "r");
  try {
    const length = Buffer.alloc(8);
    readSync(file, length, 0, 8, 0);
    const bytes = Number(length.readBigUInt64LE());
    if (bytes < 2 || bytes > MOST_HEADER_BYTES) throw new Error(`${path} is no safetensors file`);
    const text = Buffer.alloc(bytes);
    if (readSync(file, text, 0, bytes, 8) !== bytes) throw new Error(`${path} is cut short`);
    const header = JSON.parse(text.toString("utf8")) as Record<string, { shape?: number[] }>;
    return Object.entries(header).reduce(
      (sum, [name, { shape: sizes }]) =>
        name === "__metadata__" || sizes === undefined ? sum : sum + sizes.reduce((product, size) => product * size, 1),
      0,
    );
  } finally {
    closeSync(file);
  }
}
