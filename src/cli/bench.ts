/** `baton bench`. */
import { type Command, Option } from "commander";
import { SUBJECTS, type Subject } from "../bench/row.js";

export function addBench(program: Command): void {
  program
    .command("bench")
    .description("measure Baton beside its peers and the limits of the hardware, in one run")
    .option("--json <file>", "write the figures as a list of JSON objects")
    .addOption(new Option("--only <subjects...>", "these subjects").choices(SUBJECTS))
    .action(async (options: { json?: string; only?: Subject[] }) => {
      const { bench } = await import("../bench/main.js");
      await bench({ jsonFile: options.json ?? null, subjects: options.only ?? SUBJECTS });
    });
}
