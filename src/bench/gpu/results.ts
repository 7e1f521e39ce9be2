/** What a part left behind: a file a part, in the folder of results, from this command or an earlier one. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Part } from "./plan.js";

/** As the Python side writes it. */
export interface PartRecord {
  readonly job: Readonly<Record<string, unknown>>;
  readonly finished: boolean;
  /** What was done last. */
  readonly at: string;
  readonly failure: { readonly code: string; readonly message: string; readonly at: string } | null;
  readonly seconds: number;
  readonly versions: Readonly<Record<string, string | null>>;
  readonly machine: Machine | null;
  readonly values: Readonly<Record<string, unknown>>;
  readonly samples: Readonly<Record<string, readonly number[]>>;
}

export interface Machine {
  readonly gpu: string | null;
  readonly uuid: string | null;
  readonly driver: string | null;
  readonly totalBytes: number;
  readonly simulated: boolean;
}

/** The command that a part ran in. */
export interface CommandStamp {
  readonly id: string;
  readonly at: string;
  readonly words: readonly string[];
  readonly baton: string;
  readonly node: string;
}

/** From events.jsonl of a `baton run`: durations by phase and by handoff, in seconds, and the bytes released. */
export interface RunFigures {
  readonly phases: Readonly<Record<string, readonly number[]>>;
  readonly releasedBytes: readonly number[];
  readonly failure: { readonly code: string; readonly message: string } | null;
}

export interface PartResult {
  readonly part: Pick<Part, "name" | "subject" | "side" | "shape" | "variant" | "release">;
  readonly command: CommandStamp;
  readonly graphs: string;
  /** null: it is whole. */
  readonly failure: { readonly code: string; readonly message: string } | null;
  readonly record: PartRecord | null;
  readonly run: RunFigures | null;
}

const folderOf = (out: string): string => join(out, "parts");
export const resultPath = (out: string, name: string): string => join(folderOf(out), `${name}.json`);
export const recordPath = (out: string, name: string): string => join(folderOf(out), `${name}.record`);

export function readRecord(out: string, name: string): PartRecord | null {
  const path = recordPath(out, name);
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as PartRecord) : null;
}

export function writeResult(out: string, result: PartResult): void {
  writeFileSync(resultPath(out, result.part.name), `${JSON.stringify(result, null, 1)}\n`);
}

/** All results in the folder, in the order of their names. */
export function readResults(out: string): PartResult[] {
  if (!existsSync(folderOf(out))) return [];
  return readdirSync(folderOf(out))
    .filter((name) => name.endsWith(".json"))
    .sort()
    .map((name) => JSON.parse(readFileSync(join(folderOf(out), name), "utf8")) as PartResult);
}
