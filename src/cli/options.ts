/** Options that several commands have. */
import { InvalidArgumentError, Option } from "commander";
import { type Override, parseOverride } from "../recipe/index.js";

/** `--set key=value`, as often as wanted. */
export function setOption(): Option {
  return new Option("--set <key=value>", "another key of the recipe, for example deadlines.syncMs=5000 (repeatable)")
    .argParser((text: string, before: readonly string[]) => [...before, text])
    .default([], "none");
}

/** Options of the command line, and the keys of the recipe that they set. */
const RECIPE_KEYS = {
  engines: ["--engines", "engine.engines"],
  tp: ["--tp", "engine.tensorParallel"],
  gpus: ["--gpus", "gpus.count"],
  ranks: ["--ranks", "ranks"],
  simulated: ["--simulated", "gpus.simulated.memoryBytes"],
  out: ["--out", "out"],
} as const;

export type RecipeOptions = { readonly [option in keyof typeof RECIPE_KEYS]?: string };

/** What options of the command line say of the recipe; errors name the option. */
export function overridesOf(options: RecipeOptions): Override[] {
  return Object.entries(RECIPE_KEYS).flatMap(([option, [flag, key]]) => {
    const value = options[option as keyof RecipeOptions];
    return value === undefined ? [] : [{ ...parseOverride(`${key}=${value}`), source: `${flag} ${value}` }];
  });
}

/** The argument of an option that counts something. */
export function atLeastOne(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError("expected a whole number from 1");
  return value;
}
