/** The native build: configure when needed, then build incrementally. */
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { findBuildTools, findCompiler, root, run, which } from "./tools.mjs";

/**
 * @param {object} options
 * @param {string} options.tree      folder of cmake's own files
 * @param {string} options.output    folder of the results
 * @param {Record<string, string>} [options.variables]  for cmake, without -D
 * @param {string[]} [options.targets]  all when empty
 */
export function buildNative({ tree, output, variables = {}, targets = [] }) {
  const compiler = findCompiler();
  const { cmake, ninja } = findBuildTools();
  const generator = ninja === null ? "Unix Makefiles" : "Ninja";
  dropForeignCache(tree, generator);
  mkdirSync(tree, { recursive: true });
  const settings = { CMAKE_BUILD_TYPE: "Release", BATON_NODE: process.execPath, BATON_OUTPUT: output, ...variables };
  // Two builds of one tree at once (an editor, a test, npm) wait for each other.
  const flock = which("flock");
  const locked = (args) => (flock === null ? run(cmake, args) : run(flock, [join(tree, ".lock"), cmake, ...args]));
  locked([
    ...["-S", root, "-B", tree, "-G", generator, "--log-level=WARNING", "-Wno-dev"],
    ...(ninja === null ? [] : [`-DCMAKE_MAKE_PROGRAM=${ninja}`]),
    `-DCMAKE_CXX_COMPILER=${compiler}`,
    ...Object.entries(settings).map(([name, value]) => `-D${name}=${value}`),
  ]);
  locked([
    ...["--build", tree, "--parallel", String(availableParallelism())],
    ...(targets.length > 0 ? ["--target", ...targets] : []),
  ]);
}

/** cmake refuses a tree that another generator, or the same one in another folder, has made. */
function dropForeignCache(tree, generator) {
  const cache = join(tree, "CMakeCache.txt");
  if (!existsSync(cache)) return;
  const text = readFileSync(cache, "utf8");
  const value = (name) => new RegExp(`^${name}:[A-Z]+=(.*)$`, "m").exec(text)?.[1];
  const sameSource = value("CMAKE_HOME_DIRECTORY") === root.replace(/\/$/, "");
  const sameGenerator = value("CMAKE_GENERATOR") === generator;
  if (!sameSource || !sameGenerator) rmSync(tree, { recursive: true, force: true });
}

/** The ordinary build of a checkout. */
export function buildRelease(output = join(root, "build", "Release"), variables = {}) {
  buildNative({ tree: join(root, "build", "cmake"), output, variables });
}
