/** The `grpo` section of a recipe as the trainer gets it: with what the rest of the recipe says already. */
import { resolve } from "node:path";
import { BatonError } from "../errors.js";
import type { Recipe } from "./schema.js";

/** Keys of the trainer, checked by the trainer, but for those that are filled in here. */
export type GrpoSection = Readonly<Record<string, unknown>>;

/** Keys that would say again what another key says, and that key. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  model: "engine.model",
  output: "out",
  dtype: "engine.dtype",
};

/** Ranks that train: as many as GPUs where the recipe does not say. */
export function trainingRanks(recipe: Recipe): number {
  return recipe.ranks ?? recipe.gpus.count;
}

export interface SectionPlaces {
  /** Absolute path of the folder of the run. */
  readonly output: string;
  /** What paths in the section are relative to. Absolute. */
  readonly recipeFolder: string;
  /** A checkpoint to go on from, absolute, or `auto`; without it what the section says counts. */
  readonly resume?: string;
}

/**
 * @param recipe its `engine.model` absolute
 * @throws BatonError GRPO_MISSING, GRPO_KEY_ELSEWHERE, GRPO_DTYPE
 */
export function grpoSection(recipe: Recipe, { output, recipeFolder, resume }: SectionPlaces): GrpoSection {
  const { grpo } = recipe;
  if (grpo === undefined) {
    throw new BatonError({
      code: "GRPO_MISSING",
      message: "The recipe does not say what to train.",
      expected: "a section `grpo` with at least data.files and rewards",
      found: "no such section",
      action: "Add it (`baton grpo --options` lists its keys), or start a script of your own with `baton run`.",
    });
  }
  const taken = Object.keys(grpo).find((key) => Object.hasOwn(ELSEWHERE, key));
  if (taken !== undefined) {
    throw new BatonError({
      code: "GRPO_KEY_ELSEWHERE",
      message: `\`grpo.${taken}\` is not written: it is always what \`${ELSEWHERE[taken]}\` says.`,
      expected: `\`${ELSEWHERE[taken]}\` alone`,
      found: `grpo.${taken}: ${JSON.stringify(grpo[taken])}`,
      action: `Take it out of grpo, and set \`${ELSEWHERE[taken]}\`.`,
    });
  }
  const { model, dtype } = recipe.engine;
  if (dtype === "float16") {
    throw new BatonError({
      code: "GRPO_DTYPE",
      message: "A policy cannot be trained in float16: small gradients become 0 in it.",
      expected: "engine.dtype bfloat16 or float32",
      found: dtype,
      action: "Set engine.dtype to bfloat16.",
    });
  }
  const goOn = resume ?? grpo.resume;
  const from = typeof goOn === "string" && goOn !== "auto" ? resolve(recipeFolder, goOn) : goOn;
  return { ...grpo, model, output, dtype, ...(from === undefined ? {} : { resume: from }) };
}
