/** `baton run [RECIPE.yaml] [options] -- COMMAND...` */
import { resolve } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { BatonError } from "../errors.js";
import {
  checkStart,
  loadRecipe,
  nodePlace,
  type Override,
  parseOverride,
  type RecipeInput,
  recipeFrom,
} from "../recipe/index.js";
import { checkAccelerateFile } from "./accelerate-file.js";
import { choosePython } from "./choose-python.js";
import { execute } from "./execute.js";
import { machineGpus } from "./gpus.js";
import { overridesOf, type RecipeOptions, setOption } from "./options.js";
import { packageRoot } from "./package.js";
import { nodesOf, orTellNodes } from "./refusal.js";

interface RunOptions extends RecipeOptions {
  readonly model?: string;
  readonly log?: boolean;
  readonly set: readonly string[];
}

interface Words {
  readonly recipePath: string | null;
  readonly command: readonly string[];
}

export function addRun(program: Command): void {
  program
    .command("run")
    .usage("[RECIPE.yaml] [options] -- COMMAND...")
    .description("start the engines and COMMAND (any launcher), and hand the GPUs back and forth between them")
    .argument("[words...]", "the recipe, then -- and the command")
    .passThroughOptions(false)
    .option("--engines <n>", "engines on this node")
    .option("--tp <n>", "tensor parallelism of each engine")
    .option("--model <folder>", "folder with the model's config.json")
    .option("--gpus <n>", "GPUs of this node to use (default: all; of stand-in GPUs: as many as are needed)")
    .option("--ranks <n>", "ranks that the command starts on this node")
    .option("--simulated <bytes>", "use stand-in GPUs with so much memory each")
    .option("--out <dir>", "folder for events.jsonl, trace.json, summary.json")
    .option("--log", "write the output of the command to DIR/logs/launcher.log, not to the terminal")
    .addOption(setOption())
    .action(async (words: string[], options: RunOptions, command: Command) => {
      process.exitCode = await run(splitOr(command, words), options);
    });
}

/** A mistake in the words is one of usage, as a wrong option is; commander itself looks only at options. */
function splitOr(usage: Command, words: readonly string[]): Words {
  try {
    return splitWords(words, process.argv);
  } catch (error) {
    if (error instanceof InvalidArgumentError) usage.error(`error: ${error.message}`);
    throw error;
  }
}

async function run({ recipePath, command }: Words, options: RunOptions): Promise<number> {
  const overrides: Override[] = [
    ...overridesOf(options),
    // A path on the command line is meant from where the user is, one in the recipe from where the recipe is.
    ...(options.model === undefined
      ? []
      : [{ path: ["engine", "model"], value: resolve(options.model), source: `--model ${options.model}` }]),
    ...options.set.map(parseOverride),
  ];
  const file = recipePath === null ? null : resolve(recipePath);
  const started = await orTellNodes(nodesOf(file, overrides), () => prepare(file, command, overrides));
  const { recipe } = started;
  const { exitCode } = await execute({
    ...started,
    out: resolve(recipe.out),
    ownCommand: true,
    logCommand: options.log === true,
  });
  return exitCode;
}

/** What can be refused before anything is started. */
async function prepare(file: string | null, command: readonly string[], overrides: readonly Override[]) {
  const gpus = await machineGpus();
  const recipe =
    file === null ? recipeFrom({} as RecipeInput, process.cwd(), overrides, gpus) : loadRecipe(file, overrides, gpus);
  if (recipe.grpo !== undefined) {
    process.stderr.write(
      "the recipe's section grpo is for `baton grpo`: the command of `baton run` is not told of it\n",
    );
  }
  checkStart(recipe, process.env);
  checkAccelerateFile(command, process.cwd());
  const place = nodePlace(recipe, process.env);
  const chosen = await choosePython(command, {
    environment: process.env,
    packageRoot,
    folder: process.cwd(),
    say: (line) => process.stderr.write(`${line}\n`),
  });
  return { ...chosen, recipe, place };
}

/** What stands before `--` and after it. Commander drops the `--` itself, so the arguments are looked at again. */
export function splitWords(words: readonly string[], argv: readonly string[]): Words {
  const dashes = argv.indexOf("--");
  const command = dashes === -1 ? [] : argv.slice(dashes + 1);
  const before = words.slice(0, words.length - command.length);
  if (before.length > 1) {
    throw new InvalidArgumentError(`one recipe is expected before --, found ${before.join(" ")}`);
  }
  if (command.length === 0) {
    throw new BatonError({
      code: "COMMAND_MISSING",
      message: "There is no command to run.",
      expected: "baton run [RECIPE.yaml] [options] -- COMMAND...",
      found: dashes === -1 ? "no --" : "nothing after --",
      action: "Put the launcher and your script after --, for example: -- accelerate launch train.py",
    });
  }
  return { recipePath: before[0] ?? null, command };
}
