/**
 * tsc over everything, pyright over the Python package (strict), its tests and
 * the scripts, and the generated messages against their source.
 */
import { developmentPython } from "./lib/python.mjs";
import { run, SetupError } from "./lib/tools.mjs";

const python = developmentPython();
const checks = [
  ["tsc", "npx", ["tsc", "--noEmit", "-p", "tsconfig.json"]],
  ["pyright", "npx", ["pyright", "--project", "python", "--pythonpath", python, "python/src"]],
  ["pyright, tests", "npx", ["pyright", "--project", "test/pyrightconfig.json", "--pythonpath", python]],
  ["protocol", "npx", ["tsx", "scripts/protocol.ts", "--check"]],
];

let failed = 0;
for (const [name, command, args] of checks) {
  console.log(`== ${name}`);
  try {
    run(command, args);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    console.error(`${name} failed`);
    failed += 1;
  }
}
process.exitCode = failed === 0 ? 0 : 1;
