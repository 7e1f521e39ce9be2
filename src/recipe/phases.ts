import type { PhaseConfig } from "../phases/config.js";
import { logprobBounds, type Recipe } from "./schema.js";

/** What the state machine has to know of a recipe. */
export function phaseConfig(recipe: Recipe): PhaseConfig {
  const bounds = logprobBounds(recipe);
  return {
    gpus: recipe.gpus.count,
    ranks: recipe.ranks,
    engines: recipe.engine.engines,
    tensorParallel: recipe.engine.tensorParallel,
    release: recipe.release,
    checks: {
      weights: recipe.checks.weights,
      compareFirst: recipe.checks.compareFirst,
      logprobMaxBound: bounds.max,
      logprobMeanBound: bounds.mean,
    },
    deadlines: recipe.deadlines,
  };
}
