/**
 * tsc over everything, pyright over the Python package (strict), its tests and the scripts, and the generated messages
 * against their source. All at once: each keeps one core busy.
 */
import { execFile } from "node:child_process";
import { developmentPython } from "./lib/python.mjs";
import { root } from "./lib/tools.mjs";

const LIMIT_MS = 10 * 60_000;
const python = developmentPython();
const checks = [
  ["tsc", ["tsc", "--noEmit", "-p", "tsconfig.json"]],
  ["pyright", ["pyright", "--project", "python", "--pythonpath", python, "python/src"]],
  ["pyright, tests", ["pyright", "--project", "test/pyrightconfig.json", "--pythonpath", python]],
  ["protocol", ["tsx", "scripts/protocol.ts", "--check"]],
];

const check = ([name, args]) =>
  new Promise((resolve) => {
    const options = { cwd: root, timeout: LIMIT_MS, maxBuffer: 2 ** 26 };
    execFile("npx", args, options, (error, stdout, stderr) => {
      console.log(`== ${name}\n${stdout}${stderr}`.trimEnd());
      if (error !== null) console.error(`${name} failed`);
      resolve(error === null);
    });
  });
const good = await Promise.all(checks.map(check));
process.exitCode = good.every(Boolean) ? 0 : 1;
