/** How an engine is started. */
import { engineGpus, type PhaseConfig } from "../phases/config.js";
import type { Recipe } from "../recipe/schema.js";

/** The command of every engine. */
export const engineCommand = (python: string): string[] => [python, "-m", "baton.engines"];

/** BATON_ENGINE: `baton.engines.adapter.EngineConfig` and its kind, as JSON. */
export function engineEnvironment(recipe: Recipe, config: PhaseConfig, engine: number): string {
  return JSON.stringify({
    kind: recipe.engine.kind,
    index: engine,
    model: recipe.engine.model,
    tensor_parallel: recipe.engine.tensorParallel,
    devices: engineGpus(config, engine),
    dtype: recipe.engine.dtype,
    max_model_length: recipe.engine.maxModelLength,
    max_sequences: recipe.engine.maxSequences,
    cache_bytes: recipe.engine.cacheBytes,
    sync: recipe.engine.sync,
    options: recipe.engine.options,
  });
}
