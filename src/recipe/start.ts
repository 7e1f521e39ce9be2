/** The refusal of a run that cannot work, whatever Python there is: before one is looked for or set up. */
import { BatonError } from "../errors.js";
import { checkRecipeAndModel, readModelConfig } from "./checks.js";
import { checkEnvironment } from "./environment.js";
import type { Recipe } from "./schema.js";

/** @throws BatonError for the first thing about the recipe, its model or the environment that stands against the run */
export function checkStart(recipe: Recipe, environment: NodeJS.ProcessEnv): void {
  const failure =
    checkRecipeAndModel(recipe, readModelConfig(recipe.engine.model)) ??
    // Stand-in GPUs hide the real ones from every process, so these settings do nothing there.
    (recipe.gpus.simulated === null ? checkEnvironment(environment) : null);
  if (failure !== null) throw new BatonError(failure);
}
