/** Which Python runs the command of `baton run`, and which runs the engines beside it. */
import { dirname, join } from "node:path";
import { BatonError } from "../errors.js";
import {
  ENGINE_PACKAGES,
  findOnPath,
  findPython,
  interpreterOf,
  isSupported,
  type PythonProbe,
  probePython,
  unsupportedPython,
} from "./python.js";

export interface Surroundings {
  readonly environment: NodeJS.ProcessEnv;
  readonly packageRoot: string;
  /** Where the user is. */
  readonly folder: string;
  /** For what the user should know, a line each. */
  readonly say: (line: string) => void;
}

export interface Choice {
  /** As given, or with another Python in place of a bare `python`. */
  readonly command: readonly string[];
  /** Absolute path of the engines' interpreter. */
  readonly python: string;
}

/** What each rank imports; its training framework is its own business. */
const RANK_PACKAGES = ["torch", "numpy", "msgspec"];
const NEEDED = [...new Set([...ENGINE_PACKAGES, ...RANK_PACKAGES])];

/**
 * The interpreter for the engines: that of the command where it has what engines need, else the usual search. A bare
 * `python` that lacks packages means the Python that `baton setup` has made, which need not be on PATH.
 *
 * @throws BatonError COMMAND_NOT_FOUND, PYTHON_MISSING, PYTHON_UNSUPPORTED, PYTHON_PACKAGE_MISSING
 */
export async function choosePython(command: readonly string[], surroundings: Surroundings): Promise<Choice> {
  const { environment, packageRoot, folder, say } = surroundings;
  const [program = "", ...rest] = command;
  const search = (packages: readonly string[]) => findPython(packages, environment, packageRoot, folder);
  const interpreter = interpreterOf(program, environment);
  if (interpreter !== null) {
    const probe = await probePython(interpreter, NEEDED);
    const lacks = shortcoming(probe);
    if (lacks === null && !environment.BATON_PYTHON) return { command, python: interpreter };
    if (lacks !== null) {
      const complete = await search(NEEDED).catch(() => null);
      if (/^python3?$/.test(program) && complete !== null) {
        say(`${interpreter}, which \`${program}\` is on PATH, ${lacks}: the command runs with ${complete.path}`);
        return { command: [complete.path, ...rest], python: complete.path };
      }
      if (probe !== null) throw unusable(probe, program, complete);
    }
  }
  const found = await search(ENGINE_PACKAGES);
  if (interpreter === null && findOnPath(program, environment) === null) {
    // The programs of the engines' Python are put on PATH for the command too.
    const beside = join(dirname(found.path), program);
    if (program.includes("/") || findOnPath(beside, environment) === null) {
      throw new BatonError({
        code: "COMMAND_NOT_FOUND",
        message: `There is no program ${program}.`,
        expected: `${program} on PATH or beside ${found.path}`,
        found: "neither",
        action: "Check the words after --; `baton setup` installs accelerate and torchrun.",
      });
    }
  }
  return { command, python: found.path };
}

/** Why a rank could not run there, after the name of the interpreter; null: it can. */
function shortcoming(probe: PythonProbe | null): string | null {
  if (probe === null) return "does not run";
  if (!isSupported(probe)) return `is Python ${probe.version.join(".")}`;
  return probe.missing.length === 0 ? null : `lacks ${probe.missing.join(", ")}`;
}

/** @param complete another interpreter that has everything */
function unusable(probe: PythonProbe, program: string, complete: PythonProbe | null): BatonError {
  if (!isSupported(probe)) return unsupportedPython([probe]);
  const missing = probe.missing.join(", ");
  return new BatonError({
    code: "PYTHON_PACKAGE_MISSING",
    message: `${probe.path}, which runs the command, lacks ${missing}.`,
    expected: RANK_PACKAGES.join(", "),
    found: `Python ${probe.version.join(".")} without ${missing}`,
    action:
      complete === null
        ? "Run `baton setup` and start the command with that Python, or install the packages there."
        : `Start the command with ${sameOf(program, complete.path)}, which has them, or install the packages there.`,
  });
}

/** The program of the same name beside an interpreter that is complete (accelerate, torchrun), else that itself. */
function sameOf(program: string, complete: string): string {
  const beside = join(dirname(complete), program.split("/").at(-1) ?? "");
  return findOnPath(beside, {}) === null ? complete : beside;
}
