/** Starts the GRPO trainer on the ranks of a recipe, after everything that can be refused has been looked at. */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { checkRunFolder } from "../controller/folders.js";
import type { RunOutcome } from "../controller/run.js";
import { checkStart, type GrpoSection, type Recipe } from "../recipe/index.js";
import { execute } from "./execute.js";
import { freePort } from "./port.js";
import { preflight } from "./preflight.js";

export interface Training {
  /** With the number of its ranks, and the section in it, which is not looked at. */
  readonly recipe: Recipe & { readonly ranks: number };
  /** As the trainer gets it. */
  readonly section: GrpoSection;
  readonly recipeFolder: string;
  /** Absolute. */
  readonly out: string;
  readonly python: string;
  readonly logCommand: boolean;
}

/**
 * What a run is refused for without Python. The preflight writes into the folder of the run, so first comes what would
 * leave earlier results there alone.
 *
 * @throws BatonError as `runNode`, RUN_FOLDER_IN_USE
 */
export function checkTraining({ recipe, out }: Pick<Training, "recipe" | "out">): void {
  checkStart(recipe, process.env);
  checkRunFolder(out);
}

/** @throws BatonError when the start is refused */
export async function train(training: Training): Promise<RunOutcome> {
  const { recipe, section, recipeFolder, out, python, logCommand } = training;
  const ready = await preflight({
    python,
    section,
    ranks: recipe.ranks,
    recipeFolder,
    maxModelLength: recipe.engine.maxModelLength,
    deadlineMs: recipe.deadlines.startMs,
  });
  const resumed = ready.resumeAt == null ? "" : `, from the checkpoint of step ${ready.resumeAt}`;
  const heldOut = ready.heldOut ? `, ${ready.heldOut} held out` : "";
  process.stderr.write(`${ready.problems} problems${heldOut}${resumed}\n`);
  const launcher = [python, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", String(recipe.ranks)];
  const outcome = await execute({
    recipe,
    command: [
      ...[...launcher, "--master_port", String(await freePort())],
      ...["-m", "baton.examples.train_grpo", "--options", ready.optionsFile],
    ],
    out,
    python,
    logCommand,
  });
  if (outcome.failure !== null && hasCheckpoint(out)) {
    process.stderr.write("`--resume auto` with the same recipe and folder goes on from the newest checkpoint\n");
  }
  return outcome;
}

function hasCheckpoint(out: string): boolean {
  const folder = join(out, "checkpoints");
  return existsSync(folder) && readdirSync(folder).some((name) => isWhole(join(folder, name)));
}

/** Of this course of the run: those of another are renamed. */
function isWhole(checkpoint: string): boolean {
  return basename(checkpoint).startsWith("step-") && existsSync(join(checkpoint, "checkpoint.json"));
}
