/** `baton bench`. */
import type { Command } from "commander";

export function addBench(program: Command): void {
  program
    .command("bench")
    .description("measure Baton beside its peers and the limits of the hardware, in one run")
    .option("--json <file>", "write the figures as a list of JSON objects")
    .action(async (options: { json?: string }) => {
      const { bench } = await import("../bench/main.js");
      await bench(options.json ?? null);
    });
}
