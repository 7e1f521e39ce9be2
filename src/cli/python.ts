/** Which Python runs the engines (and the demo): one that has the packages that Baton needs. */
import { execFile } from "node:child_process";
import { accessSync, constants, readFileSync, realpathSync, statSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";
import { promisify } from "node:util";
import { BatonError } from "../errors.js";
import { isSupportedPython, pythonPrograms, SUPPORTED_PYTHON } from "../versions.js";

const run = promisify(execFile);
const PROBE_MS = 60_000;

/** What a Python interpreter is and which packages it lacks. */
export interface PythonProbe {
  readonly path: string;
  readonly version: readonly [number, number];
  /** sys.prefix: the folder of the (virtual) environment. */
  readonly prefix: string;
  /** Versions of the packages that are there. */
  readonly versions: Readonly<Record<string, string>>;
  /** Packages that cannot be found, by the names that they were asked for. */
  readonly missing: readonly string[];
}

/** What engines import. Finding is not importing: torch alone would take seconds. */
export const ENGINE_PACKAGES = ["torch", "numpy", "msgspec"] as const;

/**
 * What training needs, and `baton setup` installs: whatever is pinned, so that an environment of an earlier version
 * is noticed when something is added. Other versions than the pinned ones are the business of who installed them.
 */
export function pinnedPackages(packageRoot: string): string[] {
  const lines = readFileSync(requirementsPath(packageRoot), "utf8").split("\n");
  const names = lines.flatMap((line) => /^[A-Za-z0-9][\w.-]*/.exec(line.trim())?.[0] ?? []);
  return [...new Set([...ENGINE_PACKAGES, ...names])];
}

export function requirementsPath(packageRoot: string): string {
  return join(packageRoot, "python/requirements.txt");
}

const PROBE = `
import importlib.metadata, importlib.util, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
def found(name):
    # What is imported may be called otherwise (nvidia-ml-py), and what is imported may have no metadata.
    try:
        return importlib.util.find_spec(name.replace("-", "_")) is not None or version(name) != "unknown"
    except (ImportError, ValueError):
        return False
there = [name for name in sys.argv[1:] if found(name)]
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "prefix": sys.prefix,
    "versions": {name: version(name) for name in there},
    "missing": [name for name in sys.argv[1:] if name not in there],
}))
`;

/** Asks an interpreter for packages, by the name that is installed or that is imported; null when it cannot be run, or does not answer in time. */
export async function probePython(
  path: string,
  packages: readonly string[],
  timeoutMs = PROBE_MS,
): Promise<PythonProbe | null> {
  try {
    const { stdout } = await run(path, ["-c", PROBE, ...packages], { timeout: timeoutMs, killSignal: "SIGKILL" });
    return { path, ...(JSON.parse(stdout) as Omit<PythonProbe, "path">) };
  } catch {
    return null;
  }
}

/** Interpreters in the order in which they are asked, each once, by their own path (a venv's is a link). */
export function pythonCandidates(environment: NodeJS.ProcessEnv, packageRoot: string, folder: string): string[] {
  const named = environment.BATON_PYTHON;
  if (named !== undefined && named !== "") {
    return [isAbsolute(named) || named.includes("/") ? named : (findOnPath(named, environment) ?? named)];
  }
  const candidates = [
    environment.VIRTUAL_ENV ? join(environment.VIRTUAL_ENV, "bin/python") : null,
    join(folder, ".venv/bin/python"),
    join(packageRoot, ".venv/bin/python"),
    findOnPath("python3", environment),
    findOnPath("python", environment),
    // Where `python3` is too new or too old, as many systems have others beside it.
    ...pythonPrograms().map((program) => findOnPath(program, environment)),
  ];
  return [...new Set(candidates.filter((path): path is string => path !== null && isProgram(path)))];
}

/**
 * The first Python with all the packages.
 *
 * @throws BatonError PYTHON_MISSING when there is none at all, PYTHON_UNSUPPORTED when each is too old or too new,
 * PYTHON_PACKAGE_MISSING naming the packages otherwise
 */
export async function findPython(
  packages: readonly string[],
  environment: NodeJS.ProcessEnv,
  packageRoot: string,
  folder: string,
): Promise<PythonProbe> {
  const probes: PythonProbe[] = [];
  for (const path of pythonCandidates(environment, packageRoot, folder)) {
    const probe = await probePython(path, packages);
    if (probe === null) continue;
    if (probe.missing.length === 0 && isSupported(probe)) return probe;
    probes.push(probe);
  }
  throw noPython(probes, packages);
}

export function isSupported({ version }: Pick<PythonProbe, "version">): boolean {
  return isSupportedPython(version);
}

/** An error for interpreters that run, none of them of a version that can be used. */
export function unsupportedPython(probes: readonly Pick<PythonProbe, "path" | "version">[]): BatonError {
  const found = probes.map(({ path, version }) => `${path} is Python ${version.join(".")}`).join("; ");
  return new BatonError({
    code: "PYTHON_UNSUPPORTED",
    message: `${found}: Baton does not run with it.`,
    expected: SUPPORTED_PYTHON,
    found,
    action: `Install one of ${pythonPrograms().join(", ")}, or name one in BATON_PYTHON; then run \`baton setup\`.`,
  });
}

function noPython(probes: readonly PythonProbe[], packages: readonly string[]): BatonError {
  if (probes.length === 0) {
    return new BatonError({
      code: "PYTHON_MISSING",
      message: "No Python was found.",
      expected: `${SUPPORTED_PYTHON} (BATON_PYTHON, VIRTUAL_ENV, .venv, or python3 on PATH)`,
      found: "none that runs",
      action: "Install Python, then run `baton setup`.",
    });
  }
  const usable = probes.filter(isSupported);
  if (usable.length === 0) return unsupportedPython(probes);
  const nearest = usable.reduce((a, b) => (b.missing.length < a.missing.length ? b : a));
  return new BatonError({
    code: "PYTHON_PACKAGE_MISSING",
    message: `${nearest.path} lacks ${nearest.missing.join(", ")}.`,
    expected: `${SUPPORTED_PYTHON} with ${packages.join(", ")}`,
    found: probes
      .map(({ path, version, missing }) => `${path} (${version.join(".")}) without ${missing.join(", ") || "nothing"}`)
      .join("; "),
    action: "Run `baton setup`, or name a Python that has them in BATON_PYTHON.",
  });
}

/** The program that a command would run, or null when there is none of that name. */
export function findOnPath(name: string, environment: NodeJS.ProcessEnv): string | null {
  if (name.includes("/")) return isProgram(name) ? name : null;
  for (const folder of (environment.PATH ?? "").split(delimiter)) {
    if (folder !== "" && isProgram(join(folder, name))) return join(folder, name);
  }
  return null;
}

/** The interpreter that a command will run under: itself, or the one in the first line of a script; null: not Python. */
export function interpreterOf(command: string, environment: NodeJS.ProcessEnv): string | null {
  const path = findOnPath(command, environment);
  if (path === null) return null;
  if (/^python[\d.]*$/.test(path.split("/").at(-1) ?? "")) return path;
  try {
    const head = readFileSync(realpathSync(path)).subarray(0, 512).toString("utf8");
    // Long paths are written by pip and uv as a shell script that replaces itself: '''exec' '/path/python' "$0" "$@"
    const found = /^#!\s*(\S*python[\d.]*)\s*$/m.exec(head) ?? /^'''exec' '?([^'\s]*python[\d.]*)'?/m.exec(head);
    const interpreter = found?.[1];
    return interpreter !== undefined && isProgram(interpreter) ? interpreter : null;
  } catch {
    return null;
  }
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}
