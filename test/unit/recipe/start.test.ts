import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { checkStart, type RecipeInput, recipeFrom } from "../../../src/recipe/index.js";

const model = join(import.meta.dirname, "../../fixtures/light_model");
const hidden = { CUDA_VISIBLE_DEVICES: "" };

function start(input: { model?: string; tensorParallel?: number; simulated?: boolean }, environment = {}): void {
  const engine = { model: input.model ?? model, tensorParallel: input.tensorParallel ?? 1, maxModelLength: 32 };
  const simulated = input.simulated === false ? null : { memoryBytes: "64MiB" };
  const recipe: RecipeInput = { engine, gpus: { count: 4, simulated } };
  checkStart(recipeFrom(recipe, "/"), environment);
}

const refusal = (code: string) => expect.objectContaining({ code });

describe("a start", () => {
  it("that nothing speaks against is let through", () => {
    start({});
    start({ simulated: false });
  });

  it("is refused for its model, its recipe, and what the environment says of real GPUs", () => {
    expect(() => start({ model: "/nonexistent" })).toThrow(refusal("MODEL_NOT_FOUND"));
    expect(() => start({ tensorParallel: 3 })).toThrow(refusal("HEADS_NOT_DIVISIBLE"));
    expect(() => start({ simulated: false }, hidden)).toThrow(refusal("NO_VISIBLE_DEVICES"));
  });

  it("on stand-in GPUs does not mind what hides the real ones", () => {
    start({}, hidden);
  });
});
