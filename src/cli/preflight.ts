/** Everything about a GRPO run that Python can check before a GPU is used: options, model, data, reward functions. */
import { z } from "zod";
import { BatonError } from "../errors.js";
import type { GrpoSection } from "../recipe/index.js";
import { callModule, textOfModule } from "./python-module.js";

export interface PreflightOptions {
  readonly python: string;
  readonly section: GrpoSection;
  readonly ranks: number;
  /** Of the recipe: what its paths are relative to. */
  readonly recipeFolder: string;
  readonly maxModelLength: number;
  readonly deadlineMs: number;
}

const ready = z.object({
  optionsFile: z.string(),
  problems: z.number(),
  heldOut: z.number().optional(),
  resumeAt: z.number().nullish(),
  /** What must be the same on every node, beside the recipe. */
  facts: z.record(z.string(), z.string()),
});
export type Ready = z.infer<typeof ready>;

const MODULE = "baton.training.grpo.preflight";
const HELP_MS = 120_000;

export const sayToTerminal = (line: string): void => {
  process.stderr.write(`${line}\n`);
};

/** @throws BatonError whatever Python refuses with */
export async function preflight(options: PreflightOptions): Promise<Ready> {
  const answer = await callModule({
    python: options.python,
    module: MODULE,
    args: [
      ...["--ranks", String(options.ranks)],
      ...["--folder", options.recipeFolder, "--model-length", String(options.maxModelLength)],
    ],
    input: options.section,
    deadlineMs: options.deadlineMs,
    environment: process.env,
    say: sayToTerminal,
  });
  return parseAnswer(ready, answer, MODULE);
}

/** Help of every key of the section. */
export async function describeOptions(python: string): Promise<string> {
  return textOfModule({
    python,
    module: MODULE,
    args: ["--describe"],
    input: null,
    deadlineMs: HELP_MS,
    environment: process.env,
    say: sayToTerminal,
  });
}

/** @throws BatonError PREFLIGHT_FAILED when the two languages do not agree */
export function parseAnswer<T>(schema: z.ZodType<T>, answer: unknown, module: string): T {
  const result = schema.safeParse(answer);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new BatonError({
    code: "PREFLIGHT_FAILED",
    message: `${module} answered something else than was expected.`,
    expected: `${issue?.path.join(".")}: ${issue?.message}`,
    found: JSON.stringify(answer).slice(0, 300),
    action: "Use the Python package of this version of Baton: unset PYTHONPATH.",
  });
}
