/** `baton grpo RECIPE.yaml [options]`: GRPO as the recipe's section `grpo` says. */
import { dirname, resolve } from "node:path";
import type { Command } from "commander";
import {
  grpoSection,
  loadRecipe,
  nodePlace,
  type Override,
  parseOverride,
  type Recipe,
  trainingRanks,
} from "../recipe/index.js";
import { dryRun } from "./dry-run.js";
import { machineGpus } from "./gpus.js";
import { orInterrupted } from "./interrupted.js";
import { overridesOf, type RecipeOptions, setOption } from "./options.js";
import { describeOptions } from "./preflight.js";
import { nodesOf, orTellNodes } from "./refusal.js";
import { completePython } from "./setup-command.js";
import { checkTraining, train } from "./train.js";

interface GrpoOptions extends Pick<RecipeOptions, "ranks" | "simulated" | "out"> {
  readonly log?: boolean;
  readonly resume?: string;
  readonly dryRun?: boolean;
  readonly config?: string;
  readonly options?: boolean;
  readonly set: readonly string[];
}

export function addGrpo(program: Command): void {
  program
    .command("grpo")
    .usage("RECIPE.yaml [options]")
    .description("train a policy with GRPO as the recipe's section `grpo` says")
    .argument("[recipe]", "the recipe")
    .option("--ranks <n>", "training ranks, one GPU each (default: as many as GPUs)")
    .option("--simulated <bytes>", "use stand-in GPUs with so much memory each")
    .option("--out <dir>", "folder for metrics, checkpoints, the trained model, events.jsonl, summary.json")
    .option("--log", "write the output of the ranks to DIR/logs/launcher.log, not to the terminal")
    .option(
      "--resume <checkpoint>",
      "go on from this checkpoint's folder; auto: from the newest in the folder of --out",
    )
    .option("--dry-run", "run the whole recipe on stand-in GPUs with a very small model of the same shape")
    .option("--config <dir>", "with --dry-run: take the shape from the config.json here (the model need not be there)")
    .option("--options", "explain every key of the section, and end")
    .addOption(setOption())
    .action(async (path: string | undefined, options: GrpoOptions, command: Command) => {
      if (options.options !== true && path === undefined) command.error("error: a recipe is expected");
      if (options.dryRun === true && options.resume !== undefined) {
        command.error("error: a dry run makes a model of its own, so it has no checkpoint to --resume");
      }
      if (options.dryRun !== true && options.config !== undefined) {
        command.error("error: --config is for --dry-run; a run takes its model from engine.model");
      }
      process.exitCode = await orInterrupted(() =>
        options.options === true ? printOptions() : grpo(path as string, options),
      );
    });
}

async function grpo(path: string, options: GrpoOptions): Promise<number> {
  const overrides: Override[] = [...overridesOf(options), ...options.set.map(parseOverride)];
  const file = resolve(path);
  const recipeFolder = dirname(file);
  if (options.dryRun === true) {
    return dryRun({
      ...{ file, recipeFolder, overrides },
      config: options.config === undefined ? null : resolve(options.config),
      out: options.out === undefined ? null : resolve(options.out),
      python: completePython,
    });
  }
  const { resume } = options;
  const from = resume === undefined ? {} : { resume: resume === "auto" ? resume : resolve(resume) };
  const training = await orTellNodes(nodesOf(file, overrides), async () => {
    const recipe = withRanks(loadRecipe(file, overrides, await machineGpus()));
    const out = resolve(recipe.out);
    const section = grpoSection(recipe, { output: out, recipeFolder, ...from });
    const place = nodePlace(recipe, process.env);
    checkTraining({ recipe, place, out });
    return { recipe, place, section, out, python: await completePython() };
  });
  return (await train({ ...training, recipeFolder, logCommand: options.log === true })).exitCode;
}

/** So that the topology is checked before anything is started. */
export function withRanks(recipe: Recipe): Recipe & { readonly ranks: number } {
  return { ...recipe, ranks: trainingRanks(recipe) };
}

async function printOptions(): Promise<number> {
  const help = await describeOptions(await completePython());
  process.stdout.write(
    `Keys of the section \`grpo\` of a recipe. model, output and dtype are not written there: they are what the recipe's\nengine.model, out and engine.dtype say.\n\n${help}`,
  );
  return 0;
}
