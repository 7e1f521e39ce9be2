/** Asks Python, compilers and the addon what they are. Every child has a deadline. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { findOnPath, isSupported, type PythonProbe, probePython, pythonCandidates } from "../cli/python.js";
import { toBatonError } from "../errors.js";
import { addonVersion } from "../native.js";
import type { PythonFacts, SoftwareFacts, ToolFacts } from "./facts.js";
import { NEEDED, PACKAGES } from "./versions.js";

const run = promisify(execFile);
const TOOL_MS = 10_000;

type Environment = NodeJS.ProcessEnv;

/** The interpreter that a run would take, and what is in it. `deadlineMs` for each interpreter that is asked. */
export async function collectPython(
  environment: Environment,
  packageRoot: string,
  folder: string,
  deadlineMs: number,
): Promise<PythonFacts> {
  const asked = pythonCandidates(environment, packageRoot, folder);
  const probes: PythonProbe[] = [];
  for (const path of asked) {
    const probe = await probePython(path, PACKAGES, deadlineMs);
    if (probe === null) continue;
    probes.push(probe);
    if (isSupported(probe) && NEEDED.every((name) => name in probe.versions)) break;
  }
  const best = probes.reduce<PythonProbe | null>(
    (a, b) => (a === null || b.missing.length < a.missing.length ? b : a),
    null,
  );
  const none = { torchCuda: null, torchIsCudaBuild: null };
  if (best === null) return { path: null, asked, version: null, packages: {}, ...none };
  const torch = "torch" in best.versions ? await torchBuild(best.path) : none;
  return { path: best.path, asked, version: best.version, packages: best.versions, ...torch };
}

/** Reads torch/version.py: importing torch would take seconds. */
const TORCH_BUILD = `
import importlib.util, os
spec = importlib.util.find_spec("torch")
print(open(os.path.join(os.path.dirname(spec.origin), "version.py")).read())
`;

async function torchBuild(python: string): Promise<Pick<PythonFacts, "torchCuda" | "torchIsCudaBuild">> {
  const text = await output(python, ["-c", TORCH_BUILD]);
  const match = /^cuda(?::[^=]*)? = (?:'([^']+)'|None)/m.exec(text ?? "");
  if (match === null) return { torchCuda: null, torchIsCudaBuild: null };
  return { torchCuda: match[1] ?? null, torchIsCudaBuild: match[1] !== undefined };
}

export async function collectTools(environment: Environment): Promise<ToolFacts> {
  const named = environment.CXX;
  const compilerNames = named ? [named] : ["c++", "g++", "clang++"];
  const path = compilerNames.map((name) => findOnPath(name, environment)).find((found) => found !== null) ?? null;
  const cudaHome = findCudaHome(environment);
  const nvcc = cudaHome === null ? null : join(cudaHome, "bin/nvcc");
  const nvccText = nvcc !== null && existsSync(nvcc) ? await output(nvcc, ["--version"]) : null;
  return {
    compiler: path === null ? null : await askCompiler(path),
    compilerNames,
    cudaHome,
    nvccRelease: /release (\d+\.\d+)/.exec(nvccText ?? "")?.[1] ?? null,
  };
}

async function askCompiler(path: string): Promise<NonNullable<ToolFacts["compiler"]>> {
  const version = (await output(path, ["--version"]))?.split("\n")[0] ?? "does not run";
  // Headers and a concept: what the allocator's sources need, and old compilers lack.
  const source = "#include <concepts>\n#include <span>\nstatic_assert(std::integral<int>);\nint main() { return 0; }\n";
  return { path, version, cxx20: await compiles(path, source) };
}

function compiles(compiler: string, source: string): Promise<boolean> {
  return new Promise((resolve) => {
    const options = { timeout: TOOL_MS, killSignal: "SIGKILL" } as const;
    const child = execFile(compiler, ["-std=c++20", "-fsyntax-only", "-x", "c++", "-"], options, (error) => {
      resolve(error === null);
    });
    // A compiler that does not even start does not read.
    child.stdin?.on("error", () => {});
    child.stdin?.end(source);
  });
}

/** As torch finds it. */
function findCudaHome(environment: Environment): string | null {
  const named = environment.CUDA_HOME || environment.CUDA_PATH;
  if (named) return named;
  const nvcc = findOnPath("nvcc", environment);
  if (nvcc !== null) return dirname(dirname(nvcc));
  return existsSync("/usr/local/cuda") ? "/usr/local/cuda" : null;
}

async function output(program: string, words: readonly string[]): Promise<string | null> {
  try {
    const { stdout } = await run(program, words, { timeout: TOOL_MS, killSignal: "SIGKILL" });
    return stdout;
  } catch {
    return null;
  }
}

export function collectSoftware(baton: string): SoftwareFacts {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined;
  return {
    node: process.versions.node,
    baton,
    addon: addonOrFailure(),
    glibc: report?.header?.glibcVersionRuntime ?? null,
  };
}

function addonOrFailure(): SoftwareFacts["addon"] {
  try {
    return addonVersion();
  } catch (error) {
    return toBatonError(error).toFields();
  }
}
