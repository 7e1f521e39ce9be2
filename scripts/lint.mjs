/** Formatters and linters of all three languages; --fix writes what they would change. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { changed, sources } from "./lib/files.mjs";
import { developmentPython, pythonTool } from "./lib/python.mjs";
import { root, run, SetupError, which } from "./lib/tools.mjs";

const fix = process.argv.includes("--fix");
developmentPython();
const native = sources("native", /\.(cc|h)$/);

const checks = [
  ["Biome", "npx", ["biome", fix ? "check" : "ci", ...(fix ? ["--write"] : ["--error-on-warnings"])]],
  ["clang-format", pythonTool("clang-format"), [...(fix ? ["-i"] : ["--dry-run", "-Werror"]), ...native]],
  ["Ruff format", pythonTool("ruff"), ["format", ...(fix ? [] : ["--check"]), "python"]],
  ["Ruff", pythonTool("ruff"), ["check", ...(fix ? ["--fix"] : []), "python"]],
];

// Some seconds a file: those that differ from the last commit only. CMake says how each is compiled.
const compiled = join(root, "build", "cmake");
const tidy = changed("native", /\.cc$/).filter((file) => !file.startsWith("native/test/"));
if (which("clang-tidy") !== null && existsSync(join(compiled, "compile_commands.json")) && tidy.length > 0) {
  checks.push(["clang-tidy", "clang-tidy", ["-p", compiled, "--quiet", ...tidy]]);
}

let failed = 0;
for (const [name, command, args] of checks) {
  console.log(`== ${name}`);
  try {
    run(command, args);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`${name} failed${fix ? "" : "; `npm run format` mends most of it"}`);
    failed += 1;
  }
}
process.exitCode = failed === 0 ? 0 : 1;
