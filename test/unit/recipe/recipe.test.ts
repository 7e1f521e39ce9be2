import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { z } from "zod";
import { BatonError } from "../../../src/errors.js";
import {
  checkGpuSize,
  checkHeads,
  checkRecipeAndModel,
  checkSocketPath,
  loadRecipe,
  logprobBounds,
  parseOverride,
  parseRecipe,
  phaseConfig,
  type Recipe,
  type RecipeInput,
  readModelConfig,
  recipeFrom,
  recipeSchema,
} from "../../../src/recipe/index.js";
import { allKeys } from "../../../src/recipe/problems.js";

const MINIMAL = "engine: { model: tiny }\ngpus: { count: 2 }\n";

const parse = (text: string, ...set: string[]): Recipe =>
  parseRecipe(text, { file: "r.yaml", folder: "/folder", overrides: set.map(parseOverride) });

function errorOf(run: () => unknown): BatonError {
  try {
    run();
  } catch (error) {
    if (error instanceof BatonError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-recipe-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

describe("a recipe", () => {
  it("has defaults for everything but the model", () => {
    const recipe = parse(MINIMAL);
    expect(recipe.engine).toMatchObject({ kind: "small", engines: 1, tensorParallel: 1, model: "/folder/tiny" });
    expect(recipe.gpus).toEqual({ count: 2, simulated: null });
    expect(recipe.release).toBe("all");
    expect(recipe.deadlines.trainMs).toBe(1_800_000);
    expect(recipe.checks.weights).toBe("every");
  });

  it("that is no map is refused in the same words with and without options", () => {
    for (const text of ["- a\n- b", "word", "engine: [1]\ngpus: { count: 1 }"]) {
      const plain = errorOf(() => parse(text)).toFields();
      expect(errorOf(() => parse(text, "gpus.simulated.memoryBytes=1GiB")).toFields()).toEqual(plain);
      expect(errorOf(() => parse(text, "engine.engines=1")).toFields()).toEqual(plain);
      expect(plain.expected).toBe("a map");
    }
  });

  it("without a number of GPUs uses those of the machine, or as many stand-ins as are needed", () => {
    const parsed = (gpus: string, machineGpus: number | null = null, rest = ""): number =>
      parseRecipe(`engine: { model: m, engines: 2, tensorParallel: 3 }\n${gpus}\n${rest}`, {
        file: "r.yaml",
        folder: "/",
        machineGpus,
      }).gpus.count;
    expect(parsed("", 4)).toBe(4);
    expect(parsed("gpus: { count: 2 }", 4)).toBe(2);
    const simulated = "gpus: { simulated: { memoryBytes: 1GiB } }";
    expect(parsed(simulated)).toBe(6);
    expect(parsed(simulated, 4, "ranks: 8")).toBe(8);
    for (const none of [null, 0]) {
      const error = errorOf(() => parsed("", none));
      expect(error.code).toBe("GPUS_NOT_FOUND");
      expect(error.action).toContain("--gpus N");
    }
  });

  it("without a model says how to give one on the command line too", () => {
    const error = errorOf(() => recipeFrom({} as RecipeInput, "/"));
    expect(error.message).toContain("`engine.model` is missing");
    expect(error.action).toContain("--model FOLDER");
  });

  it("takes bytes with units", () => {
    const recipe = parse(`${MINIMAL.replace("}\n", ", cacheBytes: 1.5GiB }\n")}`, "gpus.simulated={memoryBytes: 2 GB}");
    expect(recipe.engine.cacheBytes).toBe(1.5 * 2 ** 30);
    expect(recipe.gpus.simulated).toEqual({ memoryBytes: 2e9, granularityBytes: 2 ** 21 });
  });

  it.each(["1.0000001KiB", "5 Gib", "-1GiB", "1e3", "GiB"])("refuses %s for bytes", (text) => {
    const error = errorOf(() => parse(MINIMAL, `engine.cacheBytes=${text === "1e3" ? '"1e3"' : text}`));
    expect(error.code).toBe("RECIPE_INVALID");
    expect(error.expected).toMatch(/bytes/);
  });

  it("is read from a file, and its model is beside it", () => {
    const path = join(folder, "r.yaml");
    writeFileSync(path, MINIMAL);
    expect(loadRecipe(path).engine.model).toBe(join(folder, "tiny"));
    expect(errorOf(() => loadRecipe(join(folder, "none.yaml"))).code).toBe("RECIPE_NOT_FOUND");
  });

  it("can be made by a program, which it leaves as it is", () => {
    const input = { engine: { model: "m" }, gpus: { count: 1 } };
    const recipe = recipeFrom(input, "/x", [parseOverride("gpus.count=3")]);
    expect(recipe.gpus.count).toBe(3);
    expect(recipe.engine.model).toBe("/x/m");
    expect(input).toEqual({ engine: { model: "m" }, gpus: { count: 1 } });
  });

  it("bounds logprobs by its dtype, unless it says otherwise", () => {
    expect(logprobBounds(parse(MINIMAL, "engine.dtype=float32"))).toEqual({ max: 1e-4, mean: 1e-4 });
    expect(logprobBounds(parse(MINIMAL, "engine.dtype=bfloat16"))).toEqual({ max: 3, mean: 0.1 });
    expect(logprobBounds(parse(MINIMAL, "checks.logprobMaxBound=0.3")).max).toBe(0.3);
    expect(phaseConfig(parse(MINIMAL)).checks.logprobMeanBound).toBe(0.1);
    const needsFloat32 = (...more: string[]) => phaseConfig(parse(MINIMAL, ...more)).checks.needsFloat32;
    expect(needsFloat32()).toBe(false);
    expect(needsFloat32("engine.dtype=float32")).toBe(true);
    expect(needsFloat32("engine.dtype=float32", "checks.logprobSequences=0")).toBe(false);
    const wide = ["checks.logprobMaxBound=3", "checks.logprobMeanBound=0.1"];
    expect(needsFloat32("engine.dtype=float32", ...wide)).toBe(false);
  });
});

describe("what is wrong with a recipe", () => {
  it.each<[string, string, RegExp, string]>([
    ["misspelt", "gpus: { cuont: 2 }", /^r\.yaml:2:9: `gpus\.cuont` is not a key of a recipe$/, "gpus.count"],
    ["in another place", "gpus: { count: 2, tensorParallel: 2 }", /^r\.yaml:2:19/, "engine.tensorParallel"],
    ["at the root", "gpus: { count: 2 }\nreleases: all", /^r\.yaml:3:1/, "release"],
    ["in snake case", "gpus: { count: 2 }\ndeadlines:\n  train_ms: 1", /^r\.yaml:4:3/, "deadlines.trainMs"],
    [
      "inside of a union",
      "gpus: { count: 2, simulated: { memoryByte: 1 } }",
      /^r\.yaml:2:32/,
      "gpus.simulated.memoryBytes",
    ],
  ])("is a key %s: the error says where, and the nearest right key", (_, text, message, nearest) => {
    const error = errorOf(() => parse(`engine: { model: m }\n${text}\n`));
    expect(error.code).toBe("RECIPE_UNKNOWN_KEY");
    expect(error.message).toMatch(message);
    expect(error.expected).toContain(nearest);
  });

  it("is a key that is like none: the error lists those of its place", () => {
    const error = errorOf(() => parse("engine: { model: m }\ngpus: { count: 2, zzzzzzz: 2 }"));
    expect(error.expected).toBe("one of count, simulated");
  });

  it.each<[string, string, RegExp, RegExp]>([
    ["gpus: { count: two }", "`gpus.count`", /number/, /"two"/],
    ["gpus: { count: 1.5 }", "`gpus.count`", /whole number/, /1\.5/],
    ["gpus: { count: 0 }", "`gpus.count`", /at least 1/, /0/],
    ["gpus: { count: 1 }\nrelease: some", "`release`", /all, needed/, /"some"/],
    ["gpus: { count: 1 }\nchecks: { logprobMaxBound: 0 }", "`checks.logprobMaxBound`", /more than 0/, /0/],
    ["gpus: { count: 1 }\ndeadlines: { trainMs: 99999999999 }", "`deadlines.trainMs`", /at most 604800000/, /9/],
    ["gpus: 3", "`gpus`", /map/, /3/],
  ])("is the value in %j", (text, name, expected, found) => {
    const error = errorOf(() => parse(`engine: { model: m }\n${text}\n`));
    expect(error.code).toBe("RECIPE_INVALID");
    expect(error.message).toContain(name);
    expect(error.message).toMatch(/^r\.yaml:[23]:/);
    expect(error.expected).toMatch(expected);
    expect(error.found).toMatch(found);
  });

  it.each(["engine: { model: m", "a: b: c", "engine: {model: m}\nengine: {model: m}", "a: *x"])(
    "is the YAML of %j",
    (text) => {
      const error = errorOf(() => parse(text));
      expect(error.code).toBe("RECIPE_SYNTAX");
      expect(error.message).toMatch(/^r\.yaml:/);
    },
  );

  it.each(["", "null", "[1]", "text"])("is that %j is no recipe at all", (text) => {
    expect(errorOf(() => parse(text)).code).toBe("RECIPE_INVALID");
  });

  it("is found for any damage to any key", () => {
    const keys = allKeys().filter((key) => !key.startsWith("engine.options"));
    expect(keys.length).toBeGreaterThan(35);
    fc.assert(
      fc.property(fc.constantFrom(...keys), fc.constantFrom("x", "q", "Z"), (key, letter) => {
        const error = errorOf(() => parse(MINIMAL, "gpus.simulated={memoryBytes: 1GiB}", `${key}${letter}=1`));
        expect(error.code).toBe("RECIPE_UNKNOWN_KEY");
        expect(error.message).toContain(`--set ${key}${letter}=1`);
        expect(error.expected).toContain(key.split(".").at(-1));
      }),
    );
  });

  it("never is a key without a description: the reference is made of them", () => {
    type Described = { description?: string; properties?: Record<string, Described>; anyOf?: Described[] };
    const missing: string[] = [];
    const walk = (schema: Described, path: string): void => {
      const members = [schema, ...(schema.anyOf ?? [])];
      for (const [key, child] of members.flatMap((member) => Object.entries(member.properties ?? {}))) {
        if (!child.description) missing.push(`${path}${key}`);
        walk(child, `${path}${key}.`);
      }
    };
    walk(z.toJSONSchema(recipeSchema, { io: "input", unrepresentable: "any" }) as Described, "");
    expect(missing).toEqual([]);
  });
});

describe("overrides", () => {
  it("replace one key and keep its neighbours", () => {
    const recipe = parse(MINIMAL, "engine.engines=2", "deadlines.trainMs=5", "engine.options.a.b=[1, x]");
    expect(recipe.engine.engines).toBe(2);
    expect(recipe.engine.model).toBe("/folder/tiny");
    expect(recipe.deadlines.trainMs).toBe(5);
    expect(recipe.engine.options).toEqual({ a: { b: [1, "x"] } });
  });

  it("come one after another, the last wins", () => {
    expect(parse(MINIMAL, "gpus.count=3", "gpus.count=4").gpus.count).toBe(4);
  });

  it("are named in errors, instead of the file", () => {
    expect(errorOf(() => parse(MINIMAL, "gpus.count=no")).message).toContain("--set gpus.count=no");
  });

  it.each(["gpus.count", "=3", "gpus..count=3", "a=[1"])("must be key=value: %s", (text) => {
    expect(errorOf(() => parseOverride(text)).code).toBe("OVERRIDE_INVALID");
  });
});

describe("checks before a start", () => {
  const model = {
    num_attention_heads: 8,
    num_key_value_heads: 2,
    intermediate_size: 64,
    max_position_embeddings: 2048,
  };
  const check = (...set: string[]) => checkRecipeAndModel(parse(MINIMAL, ...set), model)?.code;

  it("find what does not fit together", () => {
    expect(check()).toBeUndefined();
    expect(check("engine.engines=2", "gpus.count=4", "engine.tensorParallel=2")).toBeUndefined();
    expect(check("engine.engines=3")).toBe("TOO_FEW_GPUS");
    expect(check("ranks=3")).toBe("TOO_FEW_GPUS");
    expect(check("ranks=3", "gpus.count=4", "engine.engines=2")).toBe("RANKS_NOT_DIVISIBLE");
    expect(check("engine.tensorParallel=3", "gpus.count=4")).toBe("HEADS_NOT_DIVISIBLE");
    expect(check("engine.maxModelLength=4096")).toBe("MODEL_TOO_SHORT");
    expect(check("gpus.simulated={memoryBytes: 3, granularityBytes: 3}")).toBe("SIMULATED_GPU_INVALID");
    expect(check("gpus.simulated={memoryBytes: 1GiB}")).toBeUndefined();
  });

  it("know when heads can be split", () => {
    expect(checkHeads(model, 4)).toBeNull(); // 2 key-value heads, each on two workers
    expect(checkHeads({ ...model, num_key_value_heads: 3, num_attention_heads: 12 }, 4)?.code).toBe(
      "HEADS_NOT_DIVISIBLE",
    );
    expect(checkHeads({ num_attention_heads: 6 }, 4)?.code).toBe("HEADS_NOT_DIVISIBLE");
    expect(checkHeads({ num_attention_heads: 8, intermediate_size: 66 }, 4)?.code).toBe("MODEL_NOT_DIVISIBLE");
  });

  it("know how long the path of a socket may be, in bytes", () => {
    expect(checkSocketPath("a".repeat(107))).toBeNull();
    expect(checkSocketPath("a".repeat(108))?.code).toBe("SOCKET_PATH_TOO_LONG");
    expect(checkSocketPath("ü".repeat(54))?.code).toBe("SOCKET_PATH_TOO_LONG");
  });

  it("know when a GPU is too small, and for what", () => {
    const need = {
      ...{ gpu: 1, totalBytes: 10, weightBytes: 4, cacheBytes: 6, stateBytes: 10, parameterBytes: 6 },
      ...{ segmentBytes: 2, simulated: false },
    };
    expect(checkGpuSize(need)).toBeNull();
    expect(checkGpuSize({ ...need, cacheBytes: 7 })?.message).toMatch(/weights and cache/);
    expect(checkGpuSize({ ...need, stateBytes: 11 })?.message).toMatch(/training state/);
    expect(checkGpuSize({ ...need, parameterBytes: 7 })?.message).toMatch(/during a sync/);
    expect(checkGpuSize({ ...need, stateBytes: null, parameterBytes: null })).toBeNull();
    // Memory is taken by the segment.
    expect(checkGpuSize({ ...need, stateBytes: 9, segmentBytes: 8 })?.expected).toBe("at least 16 bytes");
    expect(checkGpuSize({ ...need, stateBytes: 11 })?.action).toMatch(/Use larger GPUs/);
    expect(checkGpuSize({ ...need, stateBytes: 11, simulated: true })?.action).toMatch(/--gpu-memory of `baton demo`/);
  });

  it("read the model's config.json", () => {
    const code = (text: string | null) => {
      const path = join(folder, "model");
      mkdirSync(path, { recursive: true });
      if (text !== null) writeFileSync(join(path, "config.json"), text);
      return errorOf(() => readModelConfig(path)).code;
    };
    expect(code(null)).toBe("MODEL_NOT_FOUND");
    expect(code("{")).toBe("MODEL_CONFIG_INVALID");
    expect(code("null")).toBe("MODEL_CONFIG_INVALID");
    expect(code('{"num_attention_heads": 0}')).toBe("MODEL_CONFIG_INVALID");
    const words = (text: string) => {
      code(text);
      const { expected, found } = errorOf(() => readModelConfig(join(folder, "model")));
      return { expected, found };
    };
    const expected = "`num_attention_heads`, a whole number of at least 1";
    expect(words("{}")).toEqual({ expected, found: "no such key" });
    expect(words('{"num_attention_heads": 0}')).toEqual({ expected, found: "0" });
    expect(words("[1]")).toEqual({ expected: "a JSON object", found: "[1]" });
    writeFileSync(join(folder, "config.json"), JSON.stringify({ ...model, model_type: "qwen2" }));
    expect(readModelConfig(folder)).toEqual(model);
  });
});
