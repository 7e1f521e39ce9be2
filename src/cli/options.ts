/** Options that several commands have. */
import { InvalidArgumentError, Option } from "commander";

/** `--set key=value`, as often as wanted. */
export function setOption(): Option {
  return new Option("--set <key=value>", "another key of the recipe, for example deadlines.syncMs=5000 (repeatable)")
    .argParser((text: string, before: readonly string[]) => [...before, text])
    .default([], "none");
}

/** The argument of an option that counts something. */
export function atLeastOne(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError("expected a whole number from 1");
  return value;
}
