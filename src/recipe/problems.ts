/** What is wrong with a recipe, in the words of its keys, with the place where it is written. */
import { distance } from "fastest-levenshtein";
import type { z } from "zod";
import { recipeSchema } from "./schema.js";

/** One thing that is wrong. */
export interface Problem {
  readonly code: "RECIPE_UNKNOWN_KEY" | "RECIPE_INVALID";
  /** Keys from the root to the value, or to the key that is not known. */
  readonly path: readonly string[];
  readonly message: string;
  readonly expected: string;
  readonly found: string;
  readonly action: string;
}

/** All problems of `value` that zod found; keys that are not known come first, as they explain what is missing. */
export function describeIssues(issues: readonly z.core.$ZodIssue[], value: unknown): Problem[] {
  const problems = issues.flatMap((issue) => describeIssue(issue, [], value));
  const isUnknown = (problem: Problem): boolean => problem.code === "RECIPE_UNKNOWN_KEY";
  return [...problems.filter(isUnknown), ...problems.filter((problem) => !isUnknown(problem))];
}

function describeIssue(issue: z.core.$ZodIssue, base: readonly string[], value: unknown): Problem[] {
  const path = [...base, ...issue.path.map(String)];
  if (issue.code === "unrecognized_keys") return issue.keys.map((key) => unknownKey([...path, key]));
  if (issue.code === "invalid_union") {
    // The member that takes this kind of value at all says best what is wrong inside of it.
    const member = issue.errors.find((inner) =>
      inner.some((one) => one.path.length > 0 || one.code !== "invalid_type"),
    );
    if (member) return member.flatMap((inner) => describeIssue(inner, path, value));
  }
  return [invalid(path, expectationOf(issue), valueAt(value, path))];
}

function unknownKey(path: readonly string[]): Problem {
  const keys = allKeys();
  const wanted = path.join(".");
  const nearest = nearestKey(path, keys);
  const siblings = keys.filter(
    (key) => key.startsWith(prefixOf(path)) && !key.slice(prefixOf(path).length).includes("."),
  );
  return {
    code: "RECIPE_UNKNOWN_KEY",
    path,
    message: `\`${wanted}\` is not a key of a recipe`,
    expected: nearest ?? `one of ${siblings.map((key) => key.slice(prefixOf(path).length)).join(", ")}`,
    found: wanted,
    action: nearest ? `Write \`${nearest}\`, if that is what you mean.` : "Take it out, or look for its right name.",
  };
}

const prefixOf = (path: readonly string[]): string => (path.length > 1 ? `${path.slice(0, -1).join(".")}.` : "");

/**
 * The known key that was probably meant: the same name in another place, else the one that needs the fewest
 * edits, looked for among its siblings first; null when none is near.
 */
export function nearestKey(path: readonly string[], keys: readonly string[]): string | null {
  const name = path.at(-1) ?? "";
  const last = (key: string): string => key.slice(key.lastIndexOf(".") + 1);
  const plain = (text: string): string => text.toLowerCase().replaceAll(/[_-]/g, "");
  const prefix = prefixOf(path);
  const ranked = keys
    .map((key) => ({
      key,
      edits: distance(plain(name), plain(last(key))),
      elsewhere: key === `${prefix}${last(key)}` ? 0 : 1,
    }))
    .sort((a, b) => a.edits + a.elsewhere - (b.edits + b.elsewhere) || a.elsewhere - b.elsewhere);
  const best = ranked[0];
  return best && best.edits <= Math.ceil(name.length / 3) ? best.key : null;
}

/** Every key of a recipe, dotted. */
export function allKeys(): string[] {
  const keys: string[] = [];
  const walk = (schema: unknown, prefix: string): void => {
    const inner = unwrap(schema);
    const shape = (inner as { shape?: Record<string, unknown> }).shape;
    for (const [key, child] of Object.entries(shape ?? {})) {
      keys.push(`${prefix}${key}`);
      walk(child, `${prefix}${key}.`);
    }
  };
  walk(recipeSchema, "");
  return keys;
}

/** The object inside defaults and unions with null. */
function unwrap(schema: unknown): unknown {
  const def = (schema as { def?: { innerType?: unknown; options?: readonly unknown[] } }).def;
  if (def?.innerType) return unwrap(def.innerType);
  const option = def?.options?.map(unwrap).find((one) => (one as { shape?: unknown }).shape !== undefined);
  return option ?? schema;
}

/** How what must be there is given on the command line. */
const OPTIONS: Readonly<Record<string, string>> = { "engine.model": " (or --model FOLDER)" };

function invalid(path: readonly string[], expected: string, value: unknown): Problem {
  const name = path.length === 0 ? "the recipe" : `\`${path.join(".")}\``;
  const missing = value === undefined;
  return {
    code: "RECIPE_INVALID",
    path,
    message: missing ? `${name} is missing` : `${name} is not valid`,
    expected,
    found: missing ? "nothing" : (JSON.stringify(value) ?? String(value)),
    action: missing ? `Add ${name}${OPTIONS[path.join(".")] ?? ""}.` : `Change ${name}.`,
  };
}

/** What had to be there, in words for people. */
export function expectationOf(issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_value") return `one of ${issue.values.map(String).join(", ")}`;
  if (issue.code === "too_small") return `${issue.inclusive === false ? "more than" : "at least"} ${issue.minimum}`;
  if (issue.code === "too_big") return `at most ${issue.maximum}`;
  if (issue.code === "invalid_type") return TYPE_NAMES[issue.expected] ?? issue.expected;
  return issue.message.replace(/^Invalid input: expected |^expected /, "");
}

const TYPE_NAMES: Readonly<Record<string, string>> = {
  int: "a whole number",
  number: "a number",
  string: "text",
  boolean: "true or false",
  object: "a map",
  record: "a map",
};

/** What is at this path of a value; undefined: nothing. */
export function valueAt(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((inside, key) => (inside as Record<string, unknown> | null | undefined)?.[key], value);
}
