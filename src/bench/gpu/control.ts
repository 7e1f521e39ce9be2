/** The subjects that need no GPU, beside the others: one that fails is a row, and the rest goes on. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { toBatonError } from "../../errors.js";
import { measureControl } from "../main.js";
import type { BenchRow, Subject } from "../row.js";
import { type GpuRow, gpuRow } from "./row.js";

/** Of this command and of earlier ones in the same folder, by subject. */
export type ControlResults = Readonly<Record<string, ControlResult>>;

interface ControlResult {
  readonly rows: readonly BenchRow[];
  readonly failure: string | null;
}

const pathOf = (out: string): string => join(out, "control.json");

export function readControl(out: string): ControlResults {
  return existsSync(pathOf(out)) ? (JSON.parse(readFileSync(pathOf(out), "utf8")) as ControlResults) : {};
}

/** Measures these and writes them to the folder. @returns whether all of them succeeded */
export async function runControl(out: string, subjects: readonly Subject[]): Promise<boolean> {
  let ok = true;
  for (const subject of subjects) {
    let result: ControlResult;
    try {
      result = { rows: await measureControl([subject]), failure: null };
    } catch (error) {
      const { code, message } = toBatonError(error);
      result = { rows: [], failure: `${code}: ${message}` };
      ok = false;
    }
    writeFileSync(pathOf(out), `${JSON.stringify({ ...readControl(out), [subject]: result }, null, 1)}\n`);
  }
  return ok;
}

/** A row for each subject that failed. */
export function controlFailures(control: ControlResults): GpuRow[] {
  return Object.entries(control).flatMap(([subject, { failure }]) =>
    failure === null
      ? []
      : [
          gpuRow({
            subject,
            shape: "",
            metric: "Baton or its peer",
            unit: "",
            better: "lower",
            ours: null,
            simulated: false,
            failure,
            note: "needs no GPU",
          }),
        ],
  );
}
