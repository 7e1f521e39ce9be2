/** What a part left behind: a file a part, in the folder of results, from this command or an earlier one. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Part } from "./plan.js";
import type { GpuMoves, PhaseLedger } from "./run-gpus.js";

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
  /** How many of them the part used. */
  readonly gpus: number;
}

/** The command that a part ran in. */
export interface CommandStamp {
  readonly id: string;
  readonly at: string;
  readonly words: readonly string[];
  readonly baton: string;
  readonly node: string;
}

/** From events.jsonl of a `baton run`: durations by phase and by handoff, in seconds; bytes by handoff and by GPU. */
export interface RunFigures {
  readonly phases: Readonly<Record<string, readonly number[]>>;
  readonly releasedBytes: readonly number[];
  /** Tensors of the syncs that were equal by checksum, and not; notes of workers that fall back to load_weights. */
  readonly checks: { readonly passed: number; readonly failed: number; readonly fallbacks: number };
  readonly gpus: readonly GpuMoves[];
  readonly ledger: readonly PhaseLedger[];
  /** What each side holds of a GPU while the other one works; null: unknown. */
  readonly left: readonly {
    readonly gpu: number;
    readonly trainingBytes: number | null;
    readonly engineBytes: number | null;
  }[];
  readonly failure: { readonly code: string; readonly message: string } | null;
}

export interface PartResult {
  readonly part: Pick<Part, "name" | "subject" | "side" | "shape" | "variant" | "release" | "layout">;
  readonly command: CommandStamp;
  readonly graphs: string;
  /** null: it is whole. */
  readonly failure: { readonly code: string; readonly message: string } | null;
  readonly record: PartRecord | null;
  readonly run: RunFigures | null;
}

const folderOf = (out: string): string => join(out, "parts");
export const resultPath = (out: string, name: string): string => join(folderOf(out), `${name}.json`);
/** Of rank 0, or of another of a part with several. */
export const recordPath = (out: string, name: string, rank = 0): string =>
  join(folderOf(out), `${name}.record${rank === 0 ? "" : `.rank${rank}`}`);

export function readRecord(out: string, name: string, rank = 0): PartRecord | null {
  const path = recordPath(out, name, rank);
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
