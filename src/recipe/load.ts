/** A recipe: read from YAML, with overrides merged in, checked key by key. */
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { type Document, isNode, isPair, LineCounter, type Pair, parseDocument, parse as parseYaml } from "yaml";
import { BatonError } from "../errors.js";
import { withGpuCount } from "./gpus.js";
import { describeIssues, type Problem } from "./problems.js";
import { nodesSchema, type Recipe, type RecipeInput, recipeSchema } from "./schema.js";

/** `key=value` from the command line, with where it came from for errors: `--set engine.engines=2`. */
export interface Override {
  /** Keys from the root. */
  readonly path: readonly string[];
  readonly value: unknown;
  readonly source: string;
}

/** Reads `engine.engines=2`; the value is YAML, so numbers, null, lists and maps mean what they look like. */
export function parseOverride(text: string): Override {
  const equals = text.indexOf("=");
  const path = text.slice(0, Math.max(equals, 0)).split(".");
  if (equals < 1 || path.some((key) => key === "")) {
    throw new BatonError({
      code: "OVERRIDE_INVALID",
      message: `--set ${text} does not name a key and a value`,
      expected: "key=value, for example engine.engines=2",
      found: text,
      action: "Write the key with dots, an equals sign, and the value.",
    });
  }
  const source = `--set ${text}`;
  try {
    return { path, value: parseYaml(text.slice(equals + 1)), source };
  } catch (error) {
    throw new BatonError({
      code: "OVERRIDE_INVALID",
      message: `the value of ${source} cannot be read`,
      expected: "a YAML value",
      found: error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error),
      action: "Put the value into quotes.",
    });
  }
}

/**
 * Reads the recipe in this file. `engine.model` becomes absolute, from the folder of the file.
 *
 * @param machineGpus GPUs of the machine, for a recipe that does not say how many to use; null: none that is known
 * @throws BatonError RECIPE_NOT_FOUND, RECIPE_SYNTAX, RECIPE_UNKNOWN_KEY, RECIPE_INVALID, GPUS_NOT_FOUND
 */
export function loadRecipe(
  path: string,
  overrides: readonly Override[] = [],
  machineGpus: number | null = null,
): Recipe {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new BatonError({
      code: "RECIPE_NOT_FOUND",
      message: `the recipe ${path} cannot be read`,
      expected: "a YAML file",
      found: (error as NodeJS.ErrnoException).code ?? String(error),
      action: "Give the path of a recipe, before the two dashes and the command.",
    });
  }
  return parseRecipe(text, { file: path, folder: dirname(path), overrides, machineGpus });
}

export interface RecipeSource {
  /** Name of the file, for errors. */
  readonly file: string;
  /** What `engine.model` is relative to. */
  readonly folder: string;
  readonly overrides?: readonly Override[];
  /** As of `loadRecipe`. */
  readonly machineGpus?: number | null;
}

/** As `loadRecipe`, from text. */
export function parseRecipe(text: string, { file, folder, overrides = [], machineGpus = null }: RecipeSource): Recipe {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const syntax = document.errors[0];
  if (syntax) throw notYaml(place(file, lines, syntax.pos[0]), syntax.message);
  let value: unknown;
  try {
    value = document.toJS() ?? {};
  } catch (error) {
    // An alias of nothing, or so many that they would fill the memory: found only when they are followed.
    throw notYaml(file, error instanceof Error ? error.message : String(error));
  }
  return checkRecipe(value, folder, overrides, machineGpus, (problem) => {
    const at = positionOf(document, problem.path);
    return at === null ? file : place(file, lines, at);
  });
}

function notYaml(where: string, found: string): BatonError {
  return new BatonError({
    code: "RECIPE_SYNTAX",
    message: `${where}: the recipe is not valid YAML`,
    expected: "YAML",
    found,
    action: "Mend it at this place.",
  });
}

/** A recipe that was made by a program. */
export function recipeFrom(
  input: RecipeInput,
  folder: string,
  overrides: readonly Override[] = [],
  machineGpus: number | null = null,
): Recipe {
  return checkRecipe(structuredClone(input), folder, overrides, machineGpus, () => "the recipe");
}

/** The section `nodes` of a recipe that may be wrong in everything else; null: it is wrong in this too. */
export function nodesSection(file: string | null, overrides: readonly Override[]): Recipe["nodes"] | null {
  let written: unknown = {};
  try {
    if (file !== null) written = parseYaml(readFileSync(file, "utf8"), { logLevel: "silent" });
  } catch {
    // The command line and the environment may say it all.
  }
  const merged = overrides.filter(({ path }) => path[0] === "nodes").reduce(merge, written) as {
    nodes?: unknown;
  } | null;
  return nodesSchema.safeParse(merged?.nodes ?? {}).data ?? null;
}

function checkRecipe(
  value: unknown,
  folder: string,
  overrides: readonly Override[],
  machineGpus: number | null,
  placeOf: (problem: Problem) => string,
): Recipe {
  const merged = overrides.reduce(merge, value);
  const result = recipeSchema.safeParse(merged);
  if (result.success) {
    const { engine } = result.data;
    return withGpuCount({ ...result.data, engine: { ...engine, model: resolve(folder, engine.model) } }, machineGpus);
  }
  const problems = describeIssues(result.error.issues, merged);
  const first = problems[0] as Problem;
  const more = problems.slice(1).map((problem) => `; also ${sourceOf(problem)}: ${problem.message}`);
  throw new BatonError({
    code: first.code,
    message: `${sourceOf(first)}: ${first.message}${more.join("")}`,
    expected: first.expected,
    found: first.found,
    action: first.action,
  });

  function sourceOf(problem: Problem): string {
    const override = overrides.findLast(({ path }) => path.every((key, depth) => key === problem.path[depth]));
    return override ? override.source : placeOf(problem);
  }
}

/** `value` with one key replaced; maps on the way are made, and never shared with `value`. */
function merge(value: unknown, { path: [key, ...rest], value: replacement }: Override): unknown {
  if (key === undefined) return replacement;
  // Something else where a map should be stays, so that the check says what is wrong with it.
  if (value !== undefined && value !== null && (typeof value !== "object" || Array.isArray(value))) return value;
  const map = (value ?? {}) as Record<string, unknown>;
  const inside = map[key];
  return { ...map, [key]: merge(inside, { path: rest, value: replacement, source: "" }) };
}

function place(file: string, lines: LineCounter, offset: number): string {
  const { line, col } = lines.linePos(offset);
  return `${file}:${line}:${col}`;
}

/** Offset of the key at this path, or of the nearest that is written down. */
function positionOf(document: Document, path: readonly string[]): number | null {
  for (let depth = path.length; depth > 0; depth--) {
    const parent = document.getIn(path.slice(0, depth - 1), true) ?? document.contents;
    const items = (parent as { items?: unknown[] } | null)?.items ?? [];
    const pair = items.find(
      (item): item is Pair =>
        isPair(item) && String(isNode(item.key) ? item.key.toJSON() : item.key) === path[depth - 1],
    );
    if (pair && isNode(pair.key) && pair.key.range) return pair.key.range[0];
  }
  const contents = document.contents;
  return isNode(contents) && contents.range ? contents.range[0] : null;
}
