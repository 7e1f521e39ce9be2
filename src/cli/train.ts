/** Starts the GRPO trainer on the ranks of a recipe, after everything that can be refused has been looked at. */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { checkRunFolder } from "../controller/folders.js";
import type { RunOutcome } from "../controller/run.js";
import { checkStart, type GrpoSection, type NodePlace, nodeFolder, type Recipe } from "../recipe/index.js";
import { execute } from "./execute.js";
import { freePort } from "./port.js";
import { preflight } from "./preflight.js";
import { orTellNodes } from "./refusal.js";

export interface Training {
  /** With the number of its ranks, and the section in it, which is not looked at. */
  readonly recipe: Recipe & { readonly ranks: number };
  /** This node among several; null: there is one. */
  readonly place: NodePlace | null;
  /** As the trainer gets it. */
  readonly section: GrpoSection;
  readonly recipeFolder: string;
  /** Absolute; the same on all nodes. */
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
export function checkTraining({ recipe, place, out }: Pick<Training, "recipe" | "place" | "out">): void {
  checkStart(recipe, process.env);
  checkRunFolder(nodeFolder(out, place));
}

/** @throws BatonError when the start is refused */
export async function train(training: Training): Promise<RunOutcome> {
  const { recipe, place, section, recipeFolder, out, python, logCommand } = training;
  const ready = await orTellNodes(place === null ? null : { place, nodes: recipe.nodes }, () =>
    preflight({
      python,
      section,
      ranks: recipe.ranks * (place?.count ?? 1),
      recipeFolder,
      maxModelLength: recipe.engine.maxModelLength,
      deadlineMs: recipe.deadlines.startMs,
    }),
  );
  const resumed = ready.resumeAt == null ? "" : `, from the checkpoint of step ${ready.resumeAt}`;
  const heldOut = ready.heldOut ? `, ${ready.heldOut} held out` : "";
  process.stderr.write(`${ready.problems} problems${heldOut}${resumed}\n`);
  const outcome = await execute({
    recipe,
    place,
    facts: ready.facts,
    command: [
      ...[python, "-m", "torch.distributed.run", "--nproc_per_node", String(recipe.ranks)],
      ...(await meetingPlace(place)),
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

/** Where torchrun's ranks find each other. */
async function meetingPlace(place: NodePlace | null): Promise<string[]> {
  // All of it, since torchrun takes what is left open from the environment, which may speak of other nodes.
  if (place === null) {
    const own = ["--nnodes", "1", "--node_rank", "0", "--master_addr", "127.0.0.1"];
    return [...own, "--master_port", String(await freePort())];
  }
  const { count, rank, address, port } = place;
  return [
    ...["--nnodes", String(count), "--node_rank", String(rank)],
    ...["--master_addr", address, "--master_port", String(port)],
  ];
}
