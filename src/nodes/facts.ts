/** What must be the same on every node, and what is not. */
import { createHash } from "node:crypto";
import type { Failure } from "../protocol/messages.js";
import type { Recipe } from "../recipe/index.js";
import type { Facts } from "./messages.js";

/** Of a node: where it writes, and which it is. `engine.model` is a path of the node's own; its config is compared. */
const OWN_KEYS: ReadonlySet<string> = new Set(["out", "engine.model", "nodes.rank", "nodes.address", "nodes.keyFile"]);
/** Named one by one in an error; a whole other recipe differs in everything. */
const NAMED = 6;

export interface Identity {
  /** Of Baton. */
  readonly version: string;
  readonly recipe: Recipe;
  /** Text of the model's config.json. */
  readonly modelConfig: string;
  readonly python: string;
  /** Version by Python package. */
  readonly packages: Readonly<Record<string, string>>;
  /** Whatever else, by name: the data, where a run goes on from. */
  readonly others: Readonly<Record<string, string>>;
}

export function factsOf(identity: Identity): Facts {
  const facts: Record<string, string> = {
    ...identity.others,
    baton: identity.version,
    python: identity.python,
  };
  for (const [name, version] of Object.entries(identity.packages)) facts[`package ${name}`] = version;
  for (const [key, value] of flat(identity.recipe)) if (!OWN_KEYS.has(key)) facts[key] = short(value);
  facts["config.json of engine.model"] = short(canonical(identity.modelConfig));
  return facts;
}

/** Dotted keys and JSON values of everything in `value`. */
function flat(value: unknown, prefix = ""): [string, string][] {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, JSON.stringify(value)]];
  return Object.entries(value)
    .filter(([, inner]) => inner !== undefined)
    .flatMap(([key, inner]) => flat(inner, prefix === "" ? key : `${prefix}.${key}`));
}

/** The same text for the same JSON, however it is laid out. */
function canonical(text: string): string {
  const sorted = (value: unknown): unknown =>
    value === null || typeof value !== "object" || Array.isArray(value)
      ? value
      : Object.fromEntries(
          Object.entries(value)
            .sort()
            .map(([key, inner]) => [key, sorted(inner)]),
        );
  return JSON.stringify(sorted(JSON.parse(text)));
}

const MOST = 1_000;

function short(text: string): string {
  if (text.length <= MOST) return text;
  return `${text.slice(0, 60)}… (sha256 ${createHash("sha256").update(text).digest("hex").slice(0, 16)})`;
}

/** One of all nodes, by node: the first things that are not the same, or null. */
export function differences(nodes: readonly { readonly host: string; readonly facts: Facts }[]): Failure | null {
  const [first, ...others] = nodes;
  if (first === undefined) return null;
  const names = new Set(nodes.flatMap(({ facts }) => Object.keys(facts)));
  const found: string[] = [];
  for (const name of names) {
    const position = others.findIndex(({ facts }) => facts[name] !== first.facts[name]);
    if (position === -1) continue;
    const other = others[position] as (typeof nodes)[number];
    const words = (node: number, { host, facts }: (typeof nodes)[number]): string =>
      `${facts[name] ?? "nothing"} on node ${node} (${host})`;
    found.push(`${name}: ${words(0, first)}, ${words(position + 1, other)}`);
  }
  if (found.length === 0) return null;
  const more = found.length > NAMED ? `; and ${found.length - NAMED} more` : "";
  return {
    code: "NODES_DIFFER",
    message: `the nodes would not run the same (${found.length === 1 ? "one difference" : `${found.length} differences`})`,
    expected: "the same recipe, model, version of Baton and Python packages on every node",
    found: found.slice(0, NAMED).join("; ") + more,
    action: "Start the same command with the same recipe on every node, from the same image or environment.",
  };
}
