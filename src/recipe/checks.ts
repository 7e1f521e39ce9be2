/** Whether a recipe can work on this machine with this model: everything that can be known before a start. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { BatonError } from "../errors.js";
import { checkTopology } from "../phases/topology.js";
import type { Failure } from "../protocol/messages.js";
import type { Recipe } from "./schema.js";

/** `sun_path` of Linux has 108 bytes, the last of them zero. */
export const MAX_SOCKET_PATH_BYTES = 107;

/** How stand-in GPUs get their size. */
export const STANDIN_SIZE =
  "Give them more memory: gpus.simulated.memoryBytes in the recipe, --simulated of `baton run`, --gpu-memory of `baton demo`";

/** The part of a Hugging Face config.json that Baton looks at. */
const modelConfig = z.object({
  num_attention_heads: z.int().min(1),
  num_key_value_heads: z.int().min(1).optional(),
  intermediate_size: z.int().min(1).optional(),
  max_position_embeddings: z.int().min(1).optional(),
});
export type ModelConfig = z.infer<typeof modelConfig>;

/**
 * Reads config.json of a model folder.
 *
 * @throws BatonError MODEL_NOT_FOUND, MODEL_CONFIG_INVALID
 */
export function readModelConfig(folder: string): ModelConfig {
  const path = join(folder, "config.json");
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code !== undefined;
    throw new BatonError({
      code: missing ? "MODEL_NOT_FOUND" : "MODEL_CONFIG_INVALID",
      message: missing ? `the model has no ${path}` : `${path} is not JSON`,
      expected: "a folder with the model's config.json",
      found: missing ? ((error as NodeJS.ErrnoException).code as string) : (error as Error).message,
      action: "Set engine.model to the folder of a model, relative to the recipe.",
    });
  }
  const result = modelConfig.safeParse(value);
  if (result.success) return result.data;
  const key = result.error.issues[0]?.path[0];
  const found = key === undefined ? value : (value as Record<PropertyKey, unknown>)[key];
  throw new BatonError({
    code: "MODEL_CONFIG_INVALID",
    message: `${path} is not the config of a model that Baton knows`,
    // Every key that is looked at is a count.
    expected: key === undefined ? "a JSON object" : `\`${String(key)}\`, a whole number of at least 1`,
    found: found === undefined ? "no such key" : JSON.stringify(found),
    action: "Use a decoder model in the layout of Hugging Face.",
  });
}

/** Everything about the recipe itself and its model; the first thing that is wrong, or null. */
export function checkRecipeAndModel(recipe: Recipe, model: ModelConfig): Failure | null {
  const { engines, tensorParallel, maxModelLength } = recipe.engine;
  return (
    checkTopology({ gpus: recipe.gpus.count, ranks: recipe.ranks, engines, tensorParallel }) ??
    checkHeads(model, tensorParallel) ??
    checkLength(model, maxModelLength) ??
    checkGranularity(recipe)
  );
}

/** Workers hold whole heads; fewer key-value heads than workers are replicated. */
export function checkHeads(model: ModelConfig, tensorParallel: number): Failure | null {
  const heads = model.num_attention_heads;
  const kvHeads = model.num_key_value_heads ?? heads;
  const problems: [boolean, string, string, string][] = [
    [heads % tensorParallel === 0, "HEADS_NOT_DIVISIBLE", "attention heads", `${heads}`],
    [
      kvHeads % tensorParallel === 0 || tensorParallel % kvHeads === 0,
      "HEADS_NOT_DIVISIBLE",
      "key-value heads",
      `${kvHeads}`,
    ],
    [
      (model.intermediate_size ?? 0) % tensorParallel === 0,
      "MODEL_NOT_DIVISIBLE",
      "rows of the feed-forward layers (intermediate_size)",
      `${model.intermediate_size}`,
    ],
  ];
  const problem = problems.find(([holds]) => !holds);
  if (problem === undefined) return null;
  const [, code, what, found] = problem;
  return {
    code,
    message: `the model's ${what} cannot be split over ${tensorParallel} workers`,
    expected: `a number that engine.tensorParallel (${tensorParallel}) divides`,
    found,
    action: "Choose engine.tensorParallel so that it divides the heads of the model.",
  };
}

function checkLength(model: ModelConfig, maxModelLength: number): Failure | null {
  const most = model.max_position_embeddings;
  if (most === undefined || maxModelLength <= most) return null;
  return {
    code: "MODEL_TOO_SHORT",
    message: "engine.maxModelLength is longer than what the model can do",
    expected: `at most ${most} tokens (max_position_embeddings)`,
    found: `${maxModelLength}`,
    action: "Lower engine.maxModelLength.",
  };
}

function checkGranularity({ gpus: { simulated } }: Recipe): Failure | null {
  if (simulated === null) return null;
  const { granularityBytes, memoryBytes } = simulated;
  const isPower = granularityBytes >= 4096 && Number.isInteger(Math.log2(granularityBytes));
  if (isPower && memoryBytes >= granularityBytes && memoryBytes % granularityBytes === 0) return null;
  return {
    code: "SIMULATED_GPU_INVALID",
    message: "the stand-in GPUs cannot have this memory",
    expected: "granularityBytes a power of two of at least 4096, memoryBytes a multiple of it and not less",
    found: `memoryBytes ${memoryBytes}, granularityBytes ${granularityBytes}`,
    action: `${STANDIN_SIZE}; or change gpus.simulated.granularityBytes.`,
  };
}

/** A Unix socket's path is short. */
export function checkSocketPath(path: string): Failure | null {
  const length = Buffer.byteLength(path);
  if (length <= MAX_SOCKET_PATH_BYTES) return null;
  return {
    code: "SOCKET_PATH_TOO_LONG",
    message: "the path of the run's socket is too long for Linux",
    expected: `at most ${MAX_SOCKET_PATH_BYTES} bytes`,
    found: `${length} bytes: ${path}`,
    action: "Set TMPDIR to a shorter folder.",
  };
}

/** What has to lie on one GPU, in bytes; null: not known. */
export interface GpuNeed {
  readonly gpu: number;
  readonly totalBytes: number;
  /** Memory is taken in whole segments of so much; weights and cache are given as they are taken. */
  readonly segmentBytes: number;
  /** Whether it is a stand-in: then it is as large as one says. */
  readonly simulated: boolean;
  /** Of the engine's worker. */
  readonly weightBytes: number;
  readonly cacheBytes: number;
  /** The rank's whole training state, and its parameters alone. */
  readonly stateBytes: number | null;
  readonly parameterBytes: number | null;
}

/** Whether a GPU is large enough at each moment of a handoff; what else lies on it makes it only worse. */
export function checkGpuSize(need: GpuNeed): Failure | null {
  const { totalBytes, weightBytes, cacheBytes } = need;
  const taken = (bytes: number | null): number => Math.ceil((bytes ?? 0) / need.segmentBytes) * need.segmentBytes;
  const moments: [string, number][] = [
    ["the engine's weights and cache", weightBytes + cacheBytes],
    ["the training state (parameters, masters, moments)", taken(need.stateBytes)],
    ["the parameters beside the engine's weights, during a sync", taken(need.parameterBytes) + weightBytes],
  ];
  const [what, bytes] = moments.reduce((most, moment) => (moment[1] > most[1] ? moment : most));
  if (bytes <= totalBytes) return null;
  return {
    code: "GPU_TOO_SMALL",
    message: `GPU ${need.gpu} is too small for ${what}`,
    expected: `at least ${bytes} bytes`,
    found: `${totalBytes} bytes`,
    action: need.simulated
      ? `${STANDIN_SIZE}, or use more ranks under ZeRO-3, more tensor parallelism, or a smaller engine.cacheBytes.`
      : "Use larger GPUs, more ranks under ZeRO-3, more tensor parallelism, or a smaller engine.cacheBytes.",
  };
}
