/** Options that several commands have. */
import { Option } from "commander";

/** `--set key=value`, as often as wanted. */
export function setOption(): Option {
  return new Option("--set <key=value>", "another key of the recipe, for example deadlines.syncMs=5000 (repeatable)")
    .argParser((text: string, before: readonly string[]) => [...before, text])
    .default([], "none");
}
