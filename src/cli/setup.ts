/** `baton setup`: a Python with everything that Baton needs, made when there is none. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, dirname, join, sep } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { LockHeld, takeLock } from "../controller/lock.js";
import { BatonError } from "../errors.js";
import { SUPPORTED_PYTHON } from "../versions.js";
import {
  findOnPath,
  isSupported,
  type PythonProbe,
  pinnedPackages,
  probePython,
  pythonCandidates,
  requirementsPath,
  unsupportedPython,
} from "./python.js";

export interface SetupOptions {
  /** Folder of the gpu-baton package: has python/requirements.txt and python/src. */
  readonly packageRoot: string;
  /** Where the user is. */
  readonly folder: string;
  readonly environment: NodeJS.ProcessEnv;
  /** false: PyTorch's CPU build is enough. */
  readonly hasGpu: boolean;
  /** false: nothing is trained, so that what training compiles is not needed. */
  readonly trains: boolean;
  /** Progress, a line each. */
  readonly say: (line: string) => void;
}

const LOCK_WAIT_MS = 45 * 60_000;

/**
 * Finds a Python with all packages or makes a `.venv` with pinned ones, then builds what training would else build at
 * its first use. Two at once do not collide: the second waits for the first.
 *
 * @throws BatonError PYTHON_MISSING, PYTHON_UNSUPPORTED, SETUP_FAILED
 */
export async function setup(options: SetupOptions): Promise<PythonProbe> {
  const ready = await firstComplete(options);
  if (ready !== null) {
    await prepare(ready, options);
    return ready;
  }
  const venv = venvFolder(options);
  const lock = await waitForLock(`${venv}.lock`, options.say);
  try {
    const python = (await firstComplete(options)) ?? (await makeVenv(venv, options));
    await prepare(python, options);
    return python;
  } finally {
    lock.release();
  }
}

/** A package that npm put into node_modules leaves it alone: the environment belongs to the user's folder then. */
export function venvFolder({ packageRoot, folder }: Pick<SetupOptions, "packageRoot" | "folder">): string {
  return join(packageRoot.split(sep).includes("node_modules") ? folder : packageRoot, ".venv");
}

async function firstComplete({ environment, packageRoot, folder }: SetupOptions): Promise<PythonProbe | null> {
  const packages = pinnedPackages(packageRoot);
  for (const path of pythonCandidates(environment, packageRoot, folder)) {
    const probe = await probePython(path, packages);
    if (probe !== null && probe.missing.length === 0 && isSupported(probe)) return probe;
  }
  return null;
}

async function waitForLock(path: string, say: (line: string) => void): Promise<{ release(): void }> {
  const until = Date.now() + LOCK_WAIT_MS;
  mkdirSync(dirname(path), { recursive: true });
  for (let waited = false; ; waited = true) {
    try {
      return takeLock(path);
    } catch (error) {
      if (!(error instanceof LockHeld) || Date.now() > until) throw error;
      if (!waited) say(`process ${error.pid} is setting up ${path.replace(/\.lock$/, "")}; waiting for it`);
    }
    await sleep(500);
  }
}

async function makeVenv(venv: string, options: SetupOptions): Promise<PythonProbe> {
  const { environment, packageRoot, say } = options;
  const python = join(venv, "bin/python");
  const uv = findOnPath("uv", environment);
  const usableUv = uv !== null && (await works([uv, "--version"], options)) ? uv : null;
  say(`making ${venv}`);
  if (!existsSync(python)) {
    const base = await basePython(options);
    if (usableUv !== null) await must([usableUv, "venv", "--python", base, venv], options);
    else await must([base, "-m", "venv", venv], options);
  }
  const requirements = requirementsPath(packageRoot);
  const installer = usableUv !== null ? [usableUv] : await bootstrapUv(python, options);
  if (installer === null) {
    say("installing packages with pip (several minutes)");
    await must([python, "-m", "pip", "install", "--progress-bar", "on", "-r", requirements], options);
  } else {
    // Bytecode once, not in each of a dozen processes at every start.
    const install = [...installer, "pip", "install", "--compile-bytecode", "--python", python, "-r", requirements];
    say("installing packages with uv (a minute or two)");
    // PyTorch's own index has small CPU builds; where it cannot be reached, the usual index has the large ones.
    const small = options.hasGpu ? false : await works([...install, "--torch-backend=cpu"], options);
    if (!small) {
      if (!options.hasGpu) say("no CPU build of PyTorch could be had: taking the one of the package index (larger)");
      await must(install, options);
    }
  }
  const packages = pinnedPackages(packageRoot);
  const probe = await probePython(python, packages);
  if (probe === null || probe.missing.length > 0) {
    throw new BatonError({
      code: "SETUP_FAILED",
      message: `${python} still lacks packages.`,
      expected: packages.join(", "),
      found: probe === null ? "it does not run" : `without ${probe.missing.join(", ")}`,
      action: `Remove ${venv} and run \`baton setup\` again.`,
    });
  }
  return probe;
}

/** A Python that the user has, whatever packages are in it. */
async function basePython({ environment, packageRoot, folder }: SetupOptions): Promise<string> {
  const others: PythonProbe[] = [];
  for (const path of pythonCandidates(environment, packageRoot, folder)) {
    const probe = await probePython(path, []);
    if (probe === null) continue;
    if (isSupported(probe)) return path;
    others.push(probe);
  }
  if (others.length > 0) throw unsupportedPython(others);
  throw new BatonError({
    code: "PYTHON_MISSING",
    message: "No Python was found to make a virtual environment with.",
    expected: `${SUPPORTED_PYTHON} on PATH, or in BATON_PYTHON`,
    found: "none that runs",
    action: "Install Python (Debian, Ubuntu: apt install python3 python3-venv).",
  });
}

/** uv from the package index, inside the new environment; null where that does not work. */
async function bootstrapUv(python: string, options: SetupOptions): Promise<readonly string[] | null> {
  options.say("getting uv, which installs much faster than pip");
  if (!(await works([python, "-m", "pip", "install", "--quiet", "uv"], options))) return null;
  return (await works([python, "-m", "uv", "--version"], options)) ? [python, "-m", "uv"] : null;
}

/**
 * Compiles what Python would compile at its first use: the PyTorch allocator, DeepSpeed's collectives on the CPU. Not
 * again for the same versions and sources: only to look would mean to import torch, which takes seconds.
 */
async function prepare(python: PythonProbe, options: SetupOptions): Promise<void> {
  if (!options.trains) return;
  const source = join(options.packageRoot, "python/src");
  const stamp = join(cacheFolder(python, options.environment), "prepared");
  const now = prepared(python, options.packageRoot);
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === now) return;
  options.say(`using ${python.path} (Python ${python.version.join(".")})`);
  const path = options.environment.PYTHONPATH;
  const environment = { ...options.environment, PYTHONPATH: path ? `${source}${delimiter}${path}` : source };
  await must([python.path, "-m", "baton.prepare"], { ...options, environment });
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, now);
}

/** Where `baton.training.build` keeps what it compiles: a stamp there goes when that goes. */
function cacheFolder({ prefix, path }: PythonProbe, environment: NodeJS.ProcessEnv): string {
  if (environment.BATON_CACHE) return environment.BATON_CACHE;
  if (path.startsWith(`${prefix}${sep}`) && existsSync(join(prefix, "pyvenv.cfg"))) return join(prefix, "cache/baton");
  return join(environment.XDG_CACHE_HOME || join(homedir(), ".cache"), "baton");
}

/** Names everything that what is compiled depends on. */
function prepared(python: PythonProbe, packageRoot: string): string {
  const hash = createHash("sha256");
  const folder = join(packageRoot, "native/torch");
  for (const name of readdirSync(folder).sort()) hash.update(name).update(readFileSync(join(folder, name)));
  hash.update(readFileSync(join(packageRoot, "native/capi/baton.h")));
  return `${JSON.stringify({ versions: python.versions, version: python.version, sources: hash.digest("hex") })}\n`;
}

async function works(command: readonly string[], options: SetupOptions): Promise<boolean> {
  return (await execute(command, options.environment)) === 0;
}

async function must(command: readonly string[], options: SetupOptions): Promise<void> {
  const code = await execute(command, options.environment);
  if (code === 0) return;
  throw new BatonError({
    code: "SETUP_FAILED",
    message: "A step of the setup failed; what it said is above.",
    expected: `${command.join(" ")} to work`,
    found: `exit code ${code}`,
    action: "Mend what it says and run `baton setup` again; or name a complete Python in BATON_PYTHON.",
  });
}

/** Runs a step with its output (and its progress bars) on the standard error; its exit code, or -1. */
function execute(command: readonly string[], environment: NodeJS.ProcessEnv): Promise<number> {
  const [program = "", ...rest] = command;
  return new Promise((resolve) => {
    const child = spawn(program, rest, { env: environment, stdio: ["ignore", 2, 2] });
    child.once("error", () => resolve(-1));
    child.once("exit", (code) => resolve(code ?? -1));
  });
}
