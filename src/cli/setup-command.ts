/** `baton setup`. */
import type { Command } from "commander";
import { hasNvidiaDriver } from "./gpus.js";
import { packageRoot } from "./package.js";
import { setup } from "./setup.js";

const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};

export function addSetup(program: Command): void {
  program
    .command("setup")
    .description(
      "find a Python with torch, deepspeed and the rest, or make a .venv with them; compile what is compiled once",
    )
    .action(async () => say(`ready: ${await completePython()}`));
}

/** The path of a Python with all packages, made at the first use. */
export async function completePython({ trains = true } = {}): Promise<string> {
  const { path } = await setup({
    packageRoot,
    folder: process.cwd(),
    environment: process.env,
    hasGpu: await hasNvidiaDriver(),
    trains,
    say,
  });
  return path;
}
