/** Recipes: what a run is to be. */
export {
  checkGpuSize,
  checkHeads,
  checkRecipeAndModel,
  checkSocketPath,
  type GpuNeed,
  MAX_SOCKET_PATH_BYTES,
  type ModelConfig,
  readModelConfig,
  STANDIN_SIZE,
} from "./checks.js";
export { checkEnvironment, checkExpandableSegments, checkVisibleDevices } from "./environment.js";
export { type GrpoSection, grpoSection, trainingRanks } from "./grpo.js";
export {
  loadRecipe,
  nodesSection,
  type Override,
  parseOverride,
  parseRecipe,
  type RecipeSource,
  recipeFrom,
} from "./load.js";
export { type NodePlace, nodeFolder, nodePlace } from "./nodes.js";
export { phaseConfig } from "./phases.js";
export { expectationOf, valueAt } from "./problems.js";
export { type LogprobBounds, logprobBounds, type Recipe, type RecipeInput, recipeSchema } from "./schema.js";
export { checkStart } from "./start.js";
