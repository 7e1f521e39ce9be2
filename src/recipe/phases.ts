import type { PhaseConfig } from "../phases/config.js";
import { logprobBounds, type Recipe } from "./schema.js";

/** bfloat16 keeps 8 bits of a logit, float16 11: computing in them changes logprobs by more than this. */
const ROUNDING_OF_16_BITS = 1e-3;

/** What the state machine has to know of a recipe. */
export function phaseConfig(recipe: Recipe): PhaseConfig {
  const bounds = logprobBounds(recipe);
  return {
    gpus: recipe.gpus.count,
    ranks: recipe.ranks,
    engines: recipe.engine.engines,
    tensorParallel: recipe.engine.tensorParallel,
    engineDtype: recipe.engine.dtype,
    release: recipe.release,
    checks: {
      weights: recipe.checks.weights,
      compareFirst: recipe.checks.compareFirst,
      logprobMaxBound: bounds.max,
      logprobMeanBound: bounds.mean,
      needsFloat32: recipe.checks.logprobSequences > 0 && Math.min(bounds.max, bounds.mean) < ROUNDING_OF_16_BITS,
    },
    deadlines: recipe.deadlines,
  };
}
