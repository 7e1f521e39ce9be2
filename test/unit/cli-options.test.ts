import { Command, type CommanderError } from "commander";
import { describe, expect, it } from "vitest";
import { addDemo } from "../../src/cli/demo.js";
import { addGrpo } from "../../src/cli/grpo.js";
import { addRun } from "../../src/cli/run.js";

/** What commander says of these words; every mistake here is one that it must find before anything is started. */
async function refusal(...words: string[]): Promise<string> {
  const program = new Command("baton").enablePositionalOptions().exitOverride();
  let said = "";
  program.configureOutput({
    writeErr: (text) => {
      said += text;
    },
  });
  addRun(program);
  addDemo(program);
  addGrpo(program);
  const before = process.argv;
  process.argv = ["node", "baton", ...words];
  try {
    await program.parseAsync(process.argv);
  } catch (error) {
    expect((error as CommanderError).exitCode).toBe(1);
    return said;
  } finally {
    process.argv = before;
  }
  return "nothing refused";
}

describe("the words after `baton`", () => {
  it.each(["--ranks", "--engines", "--tp", "--steps", "--iterations"])("demo refuses %s 0", async (option) => {
    expect(await refusal("demo", option, "0")).toMatch(
      new RegExp(`^error: option '${option} <n>' .*whole number from 1`),
    );
  });

  it("run refuses two recipes", async () => {
    expect(await refusal("run", "a.yaml", "b.yaml", "--", "python", "x.py")).toBe(
      "error: one recipe is expected before --, found a.yaml b.yaml\n",
    );
  });

  it.each([
    ["no recipe", [], "a recipe is expected"],
    ["a shape for a real run", ["r.yaml", "--config", "m"], "--config is for --dry-run"],
    ["a checkpoint for a dry run", ["r.yaml", "--dry-run", "--resume", "auto"], "no checkpoint to --resume"],
    ["two recipes", ["a.yaml", "b.yaml"], "too many arguments"],
  ])("grpo refuses %s", async (_, words, message) => {
    expect(await refusal("grpo", ...words)).toContain(message);
  });
});
