/**
 * `baton grpo --dry-run`: whether a recipe works, before GPUs are rented for it. Everything is as in the recipe but for
 * sizes: a small model of the same shape, few problems, stand-in GPUs, the small engine.
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { BatonError } from "../errors.js";
import {
  checkRecipeAndModel,
  grpoSection,
  loadRecipe,
  type Override,
  type Recipe,
  readModelConfig,
  trainingRanks,
} from "../recipe/index.js";
import { type Change, dryRunReport } from "./dry-run-report.js";
import { parseAnswer, preflight, sayToTerminal } from "./preflight.js";
import { callModule } from "./python-module.js";
import { checkTraining, train } from "./train.js";

export interface DryRunOptions {
  readonly file: string;
  readonly recipeFolder: string;
  readonly overrides: readonly Override[];
  /** Folder with the config.json of the model; null: the recipe's model. */
  readonly config: string | null;
  /** null: a temporary folder; never the recipe's own, which may hold the results of a real run. */
  readonly out: string | null;
  /** Makes it at the first use. */
  readonly python: () => Promise<string>;
}

const MODULE = "baton.training.grpo.dry_run";
const GPU_BYTES = 64 * 2 ** 20;
const SEQUENCES = 64;
const LEAST_LOGPROBS = 4;
/** What a folder has that a tokenizer can be loaded from. */
const TOKENIZERS = ["tokenizer.json", "tokenizer.model", "vocab.json"];

const plan = z.object({
  section: z.record(z.string(), z.unknown()),
  modelLength: z.int(),
  ownData: z.boolean(),
  changes: z.array(z.tuple([z.string(), z.unknown(), z.unknown()])),
  kept: z.array(z.string()),
  notes: z.array(z.string()),
});
type Plan = z.infer<typeof plan>;

/** @returns the exit code */
export async function dryRun(options: DryRunOptions): Promise<number> {
  const { file, recipeFolder, overrides } = options;
  // First, so that a recipe without a number of GPUs takes as many as it needs, on any machine.
  const simulated: Override = { path: ["gpus", "simulated"], value: { memoryBytes: GPU_BYTES }, source: "--dry-run" };
  const recipe = loadRecipe(file, [simulated, ...overrides]);
  const ranks = trainingRanks(recipe);
  const config = options.config ?? recipe.engine.model;
  checkShape({ ...recipe, ranks }, config, options.config === null);
  const scratch = mkdtempSync(join(tmpdir(), "baton-dry-run-"));
  const out = options.out ?? join(scratch, "out");
  const section = grpoSection(recipe, { output: out, recipeFolder });
  let passed = false;
  try {
    const python = await options.python();
    const deadlineMs = recipe.deadlines.startMs;
    const answer = await callModule({
      ...{ python, module: MODULE, input: section, deadlineMs, environment: process.env, say: sayToTerminal },
      args: ["--config", config, "--out", scratch, "--folder", recipeFolder, "--ranks", String(ranks)],
    });
    const made = parseAnswer(plan, answer, MODULE);
    const checked = made.ownData && isWhole(recipe.engine.model);
    if (checked) {
      // The recipe itself, with the model's own tokenizer: all of it that needs no GPU.
      const real = { ...section, output: join(scratch, "preflight") };
      const { maxModelLength } = recipe.engine;
      await preflight({ python, section: real, ranks, recipeFolder, maxModelLength, deadlineMs });
    }
    const small = { ...smallRecipe(recipe, made, scratch), ranks };
    checkTraining({ recipe: small, place: null, out });
    // What many ranks print is read only when something is wrong, and then the end of it is shown.
    const outcome = await train({
      recipe: small,
      place: null,
      section: made.section,
      recipeFolder,
      out,
      python,
      logCommand: true,
    });
    if (outcome.failure !== null || outcome.exitCode !== 0) return outcome.exitCode || 1;
    const changes = [...engineChanges(recipe, small), ...made.changes];
    const report = { real: recipe, recipe: small, made: { ...made, changes }, summary: outcome.summary, checked };
    for (const line of dryRunReport({ ...report, file, config })) sayToTerminal(line);
    passed = true;
    return 0;
  } finally {
    // What went wrong is to be read there.
    if (passed || options.out !== null) rmSync(scratch, { recursive: true, force: true });
  }
}

/** The real shape is refused as it would be on real GPUs: the small one is not to hide that it cannot be split. */
function checkShape(recipe: Recipe, config: string, isModel: boolean): void {
  let wrong: ReturnType<typeof checkRecipeAndModel>;
  try {
    wrong = checkRecipeAndModel(recipe, readModelConfig(config));
  } catch (error) {
    if (!(error instanceof BatonError) || error.code !== "MODEL_NOT_FOUND" || !isModel) throw error;
    throw new BatonError({
      ...error.toFields(),
      action: "A dry run needs the shape of the model only: name a folder with its config.json with --config.",
    });
  }
  if (wrong !== null) throw new BatonError(wrong);
}

/** Whether the model can be checked as for a real run: with weights and a tokenizer. */
function isWhole(model: string): boolean {
  const weights = ["model.safetensors", "model.safetensors.index.json"];
  const has = (names: readonly string[]): boolean => names.some((name) => existsSync(join(model, name)));
  return has(TOKENIZERS) && has(weights);
}

function smallRecipe(recipe: Recipe, { modelLength }: Plan, scratch: string): Recipe {
  const { engine, checks } = recipe;
  return {
    ...recipe,
    engine: {
      ...engine,
      kind: "small",
      model: join(scratch, "model"),
      maxModelLength: modelLength,
      maxSequences: Math.min(engine.maxSequences, SEQUENCES),
      cacheBytes: null,
      options: {},
    },
    checks: {
      ...checks,
      weights: "every",
      compareFirst: true,
      logprobSequences: Math.max(checks.logprobSequences, LEAST_LOGPROBS),
    },
  };
}

function engineChanges({ engine: from }: Recipe, { engine: to }: Recipe): Change[] {
  const keys = ["kind", "maxModelLength", "maxSequences"] as const;
  return keys.flatMap((key) => (from[key] === to[key] ? [] : [[`engine.${key}`, from[key], to[key]] satisfies Change]));
}
