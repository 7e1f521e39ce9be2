/** How many GPUs a run uses whose recipe does not say. */
import { BatonError } from "../errors.js";
import type { ParsedRecipe, Recipe } from "./schema.js";

/**
 * Fills `gpus.count` in: stand-in GPUs as many as are needed, else all that the machine has.
 *
 * @param machineGpus null: the machine has no driver
 * @throws BatonError GPUS_NOT_FOUND
 */
export function withGpuCount(recipe: ParsedRecipe, machineGpus: number | null): Recipe {
  const { engine, ranks, gpus } = recipe;
  const needed = Math.max(ranks ?? 1, engine.engines * engine.tensorParallel);
  const count = gpus.count ?? (gpus.simulated === null ? machineGpus : needed);
  if (count !== null && count > 0) return { ...recipe, gpus: { ...gpus, count } };
  throw new BatonError({
    code: "GPUS_NOT_FOUND",
    message: "the recipe does not say which GPUs to use, and this machine has none",
    expected: "an NVIDIA driver with a GPU, or stand-in GPUs (gpus.simulated, --simulated BYTES)",
    found: machineGpus === null ? "no NVIDIA driver" : `${machineGpus} GPUs`,
    action: "Add --simulated 1GiB to try it on stand-in GPUs, or --gpus N where the driver cannot be asked.",
  });
}
