import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  checkRecipeAndModel,
  grpoSection,
  loadRecipe,
  parseRecipe,
  readModelConfig,
  trainingRanks,
} from "../../../src/recipe/index.js";

const TEXT = `
engine: { model: ./model, dtype: bfloat16 }
gpus: { count: 4 }
grpo: { batches: 3, data: { files: [a.jsonl] } }
`;
const recipe = (text = TEXT, ...overrides: { path: string[]; value: unknown; source: string }[]) =>
  parseRecipe(text, { file: "r.yaml", folder: "/recipes", overrides });
const PLACES = { output: "/out", recipeFolder: "/recipes" };
const set = (key: string, value: unknown) => ({ path: key.split("."), value, source: `--set ${key}` });

describe("the section grpo", () => {
  it("is filled in with what the rest of the recipe says", () => {
    expect(grpoSection(recipe(), PLACES)).toEqual({
      batches: 3,
      data: { files: ["a.jsonl"] },
      model: "/recipes/model",
      output: "/out",
      dtype: "bfloat16",
    });
  });

  it("takes keys from the command line, new ones and deep ones too", () => {
    const changed = recipe(TEXT, set("grpo.batches", 5), set("grpo.data.limit", 7), set("grpo.lora.rank", 8));
    expect(grpoSection(changed, PLACES)).toMatchObject({
      batches: 5,
      data: { files: ["a.jsonl"], limit: 7 },
      lora: { rank: 8 },
    });
  });

  it("has resume of the command line rather than its own", () => {
    const resuming = recipe(TEXT, set("grpo.resume", "old"));
    expect(grpoSection(resuming, { ...PLACES, resume: "auto" }).resume).toBe("auto");
    expect(grpoSection(resuming, { ...PLACES, resume: "/new" }).resume).toBe("/new");
  });

  it("has a path of its own relative to the recipe", () => {
    expect(grpoSection(recipe(TEXT, set("grpo.resume", "old")), PLACES).resume).toBe("/recipes/old");
    expect(grpoSection(recipe(TEXT, set("grpo.resume", "auto")), PLACES).resume).toBe("auto");
    expect(grpoSection(recipe(TEXT), PLACES)).not.toHaveProperty("resume");
  });

  it.each([
    ["model", "engine.model"],
    ["output", "out"],
    ["dtype", "engine.dtype"],
  ])("does not have %s: that is %s", (key, right) => {
    expect(() => grpoSection(recipe(TEXT, set(`grpo.${key}`, "x")), PLACES)).toThrow(
      expect.objectContaining({
        code: "GRPO_KEY_ELSEWHERE",
        expected: `\`${right}\` alone`,
        found: `grpo.${key}: "x"`,
        action: expect.stringContaining(right),
      }),
    );
  });

  it("is not trained in float16", () => {
    const half = recipe(TEXT, set("engine.dtype", "float16"));
    expect(() => grpoSection(half, PLACES)).toThrow(expect.objectContaining({ code: "GRPO_DTYPE", found: "float16" }));
  });

  it("must be there", () => {
    const without = recipe("engine: { model: m }\ngpus: { count: 1 }\n");
    expect(() => grpoSection(without, PLACES)).toThrow(expect.objectContaining({ code: "GRPO_MISSING" }));
  });

  it("is a map, and its name is known to who misspells it", () => {
    expect(() => recipe("engine: { model: m }\ngpus: { count: 1 }\ngrpo: 3\n")).toThrow(
      expect.objectContaining({ code: "RECIPE_INVALID", expected: "a map", found: "3" }),
    );
    expect(() => recipe("engine: { model: m }\ngpus: { count: 1 }\ngrop: {}\n")).toThrow(
      expect.objectContaining({ code: "RECIPE_UNKNOWN_KEY", expected: "grpo" }),
    );
  });
});

describe("the ranks that train", () => {
  it("are the recipe's, else as many as GPUs", () => {
    expect(trainingRanks(recipe())).toBe(4);
    expect(trainingRanks(recipe(TEXT, set("ranks", 2)))).toBe(2);
  });
});

describe("the recipes in examples/", () => {
  const folder = join(import.meta.dirname, "../../../examples");
  const names = readdirSync(folder).filter((name) => name.endsWith(".yaml"));
  const shapeOf = (name: string): string | undefined =>
    readdirSync(join(folder, "shapes")).find((shape) => name.startsWith(shape));

  it("are these", () => {
    expect(names.sort()).toEqual([
      "demo.yaml",
      "qwen2.5-14b-lora.yaml",
      "qwen2.5-7b-zero2.yaml",
      "qwen2.5-7b-zero3.yaml",
      "smollm2-135m-lora.yaml",
      "smollm2-135m.yaml",
    ]);
  });

  it.each(names)("%s is a recipe whose model can be split as it says", (name) => {
    const loaded = loadRecipe(join(folder, name));
    expect(grpoSection(loaded, PLACES)).toHaveProperty("rewards");
    const shape = shapeOf(name);
    const model = shape === undefined ? loaded.engine.model : join(folder, "shapes", shape);
    expect(checkRecipeAndModel({ ...loaded, ranks: trainingRanks(loaded) }, readModelConfig(model))).toBeNull();
  });

  it.each(names)("%s names files that are here, or that README.md says how to get", (name) => {
    const readme = readFileSync(join(folder, "README.md"), "utf8");
    const loaded = loadRecipe(join(folder, name));
    const { data, held_out, rewards } = loaded.grpo as {
      data: { files: string[] };
      held_out: string;
      rewards: { function: string }[];
    };
    const own = rewards.map((reward) => reward.function).filter((text) => text.includes(":"));
    for (const file of [...data.files, held_out, ...own.map((text) => text.split(":")[0] as string)]) {
      expect(existsSync(join(folder, file)) || readme.includes(`examples/${file}`), file).toBe(true);
    }
    const inside = loaded.engine.model.replace(`${folder}/`, "");
    expect(existsSync(loaded.engine.model) || readme.includes(`examples/${inside}`), inside).toBe(true);
    expect(dirname(loaded.out)).toBe("baton-out");
  });
});
