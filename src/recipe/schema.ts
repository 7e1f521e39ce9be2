/** What a recipe says, key by key. The descriptions are the reference documentation. */
import { z } from "zod";

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
};

/** A whole number of bytes, or one with a unit: `24GiB`, `512 MiB`. */
const bytes = z
  .union([z.int().min(0), z.string()], { error: "expected a number of bytes, or one with a unit such as 24GiB" })
  .transform((value, context) => {
    if (typeof value === "number") return value;
    const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$/.exec(value.trim());
    const unit = UNITS[match?.[2] ?? ""];
    const total = unit === undefined ? Number.NaN : Number(match?.[1]) * unit;
    if (Number.isSafeInteger(total)) return total;
    context.addIssue({
      code: "custom",
      message: `expected whole bytes, with a unit of ${Object.keys(UNITS).join(", ")}`,
    });
    return z.NEVER;
  });

const count = z.int().min(1);

/** A wait of at least a moment and at most a week: setTimeout fires at once above 2^31 - 1 ms. */
const deadline = (defaultMs: number, text: string) => z.int().min(1).max(604_800_000).default(defaultMs).describe(text);

const engine = z.strictObject({
  kind: z
    .enum(["small", "vllm"])
    .default("small")
    .describe("The engine: `small` is Baton's own, for small models and for machines without a GPU; `vllm` needs one."),
  model: z
    .string()
    .min(1)
    .describe(
      "Folder with the model's config.json (Hugging Face layout), relative to the recipe. Its weights are not read.",
    ),
  engines: count.default(1).describe("Engines on this node. Each generates for an equal share of the ranks."),
  tensorParallel: count
    .default(1)
    .describe("Workers of each engine, one GPU each: engine e has GPUs e*TP … e*TP+TP-1."),
  dtype: z
    .enum(["float32", "bfloat16", "float16"])
    .default("bfloat16")
    .describe(
      "Type of the engine's weights. The policy's parameters should have it too; float32 is rounded to bfloat16.",
    ),
  maxModelLength: count.default(2048).describe("Longest prompt plus completion, in tokens."),
  maxSequences: count.default(256).describe("Sequences that an engine generates at once."),
  cacheBytes: z
    .union([bytes, z.null()], { error: "expected a number of bytes, or one with a unit such as 24GiB, or null" })
    .default(null)
    .describe("KV cache on each GPU; null: what `maxSequences` sequences of full length need."),
  sync: z
    .enum(["copies", "load_weights"])
    .default("copies")
    .describe(
      "How weights get into an engine: `copies` of what its `load_weights` was seen to do, or that itself at every sync, " +
        "which is slower (and is taken where copies cannot do it).",
    ),
  options: z
    .record(z.string(), z.unknown())
    .default({})
    .describe(
      "Options of the engine itself. `vllm`: any argument of its engine that Baton does not set, such as enforceEager, " +
        "or gpuMemoryUtilization (with cacheBytes null: vLLM sizes the cache).",
    ),
});

const simulated = z.strictObject({
  memoryBytes: bytes.describe("Memory of each stand-in GPU."),
  granularityBytes: bytes.default(2 * 2 ** 20).describe("Allocation granularity of the stand-in GPUs, a power of two."),
});

const gpus = z.strictObject({
  count: z
    .union([count, z.null()], { error: "expected a whole number of at least 1, or null" })
    .default(null)
    .describe(
      "GPUs of the node to use, from GPU 0. Local rank l computes on GPU l. null: all that the machine has; of stand-in " +
        "GPUs as many as the engines and `ranks` need.",
    ),
  simulated: z
    .union([simulated, z.null()], { error: "expected null, or a map with memoryBytes" })
    .default(null)
    .describe("null: real GPUs. Otherwise Baton's stand-in GPUs, for machines that have none."),
});

const checks = z.strictObject({
  weights: z
    .enum(["every", "first", "off"])
    .default("every")
    .describe("Which syncs are proven by checksums of every tensor, on the trainer and in the engine."),
  compareFirst: z
    .boolean()
    .default(true)
    .describe("Compare the first sync of each copy plan with the engine's own load_weights, parameter by parameter."),
  logprobSequences: z
    .int()
    .min(0)
    .default(4)
    .describe("Sequences of each rollout whose logprobs trainer and engine compare; 0: none."),
  logprobMaxBound: z
    .union([z.number().positive(), z.null()])
    .default(null)
    .describe(
      "Largest difference of one logprob that is accepted; null: 1e-4 for float32, else 3 (bf16 alone makes 0.8).",
    ),
  logprobMeanBound: z
    .union([z.number().positive(), z.null()])
    .default(null)
    .describe("Largest mean difference that is accepted; null: 1e-4 for float32, else 0.1 (bf16 alone makes 0.06)."),
  verifyFrozen: z
    .int()
    .min(0)
    .default(2)
    .describe(
      "On so many resumes the bytes of frozen segments are compared with what was saved. That nothing was written on " +
        "them is checked whenever they are to be released.",
    ),
});

const deadlines = z.strictObject({
  startMs: deadline(900_000, "Until every engine is ready and every rank has attached."),
  trainMs: deadline(
    1_800_000,
    "One stay in training; and from the first rank that is finished until the command ends.",
  ),
  arriveMs: deadline(120_000, "From the first rank that arrives, calls generate or leaves until the others have too."),
  releaseMs: deadline(60_000, "A rank giving memory back."),
  roomMs: deadline(10_000, "Until room that was given back shows in NVML."),
  wakeMs: deadline(60_000, "An engine waking its weights, and then its cache."),
  planMs: deadline(60_000, "Workers making their copy plan."),
  syncMs: deadline(
    60_000,
    "Ranks exporting their segments; workers taking the weights; their sums; comparing those. Each.",
  ),
  generateIdleMs: deadline(120_000, "An engine without a new token while it generates."),
  rolloutMs: deadline(600_000, "A rollout in which no rank calls generate or leaves."),
  sleepMs: deadline(60_000, "An engine going to sleep."),
  resumeMs: deadline(60_000, "A rank taking its parameters back."),
  stopMs: deadline(10_000, "Processes ending in good order after a run; then they are killed."),
});

const port = z.int().min(1).max(65_534);

export const nodesSchema = z.strictObject({
  count: z
    .union([count, z.null()])
    .default(null)
    .describe("Nodes that train together; null: as torchrun's or Slurm's environment says, or else one."),
  rank: z
    .union([z.int().min(0), z.null()])
    .default(null)
    .describe("Number of this node, from 0; null: as the environment says."),
  address: z
    .union([z.string().min(1), z.null()])
    .default(null)
    .describe("Name or address of node 0, as the others reach it; null: as the environment says."),
  port: z
    .union([port, z.null()])
    .default(null)
    .describe(
      "First of two TCP ports of node 0: the ranks meet there (MASTER_PORT), the controllers at the next one. " +
        "null: as the environment says, or else 29500.",
    ),
  keyFile: z
    .union([z.string().min(1), z.null()])
    .default(null)
    .describe(
      "File with a secret that all nodes have, relative to the current folder, so that no stranger joins; null: " +
        "BATON_NODES_KEY of the environment, or else none.",
    ),
  meetMs: deadline(600_000, "Until every node has come."),
  silenceMs: deadline(15_000, "Without a sign of life from another node's controller."),
});

export const recipeSchema = z.strictObject({
  engine: engine.prefault({} as z.input<typeof engine>).describe("The engines that generate."),
  gpus: gpus.prefault({}).describe("The GPUs of this node."),
  nodes: nodesSchema
    .prefault({})
    .describe("Several nodes that train one policy, each with engines of its own: the same command on each of them."),
  ranks: z
    .union([count, z.null()])
    .default(null)
    .describe("Ranks that the command starts on this node; null: learned from the first that connects."),
  release: z
    .enum(["all", "needed"])
    .default("all")
    .describe(
      "What ranks give back for generation: all they can, so that every handoff is like any other, or only what the " +
        "engine on their GPU lacks at that time. `needed` is faster where most of it fits beside the engine.",
    ),
  checks: checks.prefault({}).describe("What is verified while the run goes on."),
  deadlines: deadlines.prefault({}).describe("How long each wait may last, in milliseconds."),
  grpo: z
    .record(z.string(), z.unknown())
    .optional()
    .describe(
      "What `baton grpo` trains; `baton run` does not read it. Its keys are checked, and explained, by the trainer: " +
        "`baton grpo --options` lists them.",
    ),
  out: z
    .string()
    .min(1)
    .default("baton-out")
    .describe("Folder for events.jsonl, trace.json and summary.json, relative to the current folder."),
});

/** A recipe as written: defaults may be left out. */
export type RecipeInput = z.input<typeof recipeSchema>;
/** What the schema makes of it; the number of GPUs may not be known yet. */
export type ParsedRecipe = z.output<typeof recipeSchema>;
/** A recipe with every default filled in, except the bounds that depend on the dtype (`logprobBounds`). */
export interface Recipe extends Omit<ParsedRecipe, "gpus"> {
  readonly gpus: Omit<ParsedRecipe["gpus"], "count"> & { readonly count: number };
}

/** Bounds of logprob differences between trainer and engine. */
export interface LogprobBounds {
  readonly max: number;
  readonly mean: number;
}

/**
 * The bounds of this recipe: its own, or those of its dtype.
 *
 * Two correct implementations in bfloat16 differ by what rounding does to logits of 20 to 40: SmolLM2-135M in
 * transformers, bfloat16 against float32, by 0.05 on average, and in one token of thousands by 0.8. A mistake in one of its 30 layers
 * makes far more: 0.18 and 2.8 when the keys of one head are zero, 1.2 and 8.3 when two matrices are swapped.
 */
export function logprobBounds(recipe: Recipe): LogprobBounds {
  const byDtype = recipe.engine.dtype === "float32" ? { max: 1e-4, mean: 1e-4 } : { max: 3, mean: 0.1 };
  return {
    max: recipe.checks.logprobMaxBound ?? byDtype.max,
    mean: recipe.checks.logprobMeanBound ?? byDtype.mean,
  };
}
