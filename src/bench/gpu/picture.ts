/** The picture of a bench: drawn by matplotlib where the Python has it, or later from bench.json. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { probePython } from "../../cli/python.js";
import { pythonPath } from "../../native.js";

const DRAW_MS = 60_000;

/** Writes `svg`; where that cannot be, says how to. A picture that fails is no reason to lose the figures. */
export async function drawPicture(python: string, json: string, svg: string): Promise<void> {
  const words = ["-m", "baton.bench.picture", json, svg];
  const probe = await probePython(python, ["matplotlib"]);
  if (probe === null || probe.missing.length > 0) {
    process.stderr.write(`no picture: ${python} has no matplotlib; with one that has: python ${words.join(" ")}\n`);
    return;
  }
  try {
    await promisify(execFile)(python, words, {
      timeout: DRAW_MS,
      env: { ...process.env, PYTHONPATH: [pythonPath(), process.env.PYTHONPATH].filter(Boolean).join(":") },
    });
  } catch (error) {
    process.stderr.write(`no picture: ${error instanceof Error ? error.message : String(error)}\n`);
  }
}
