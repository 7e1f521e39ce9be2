/**
 * The install script of the package. In a checkout: builds the native code, incrementally, and fails when it does
 * not build, so that no stale addon is left. In an installed package: tries the shipped prebuild in a process of its
 * own and builds nothing when that loads.
 *
 *   --build           builds, whatever is there
 *   --output FOLDER   where the results go (default build/Release)
 */
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { buildRelease } from "./lib/native.mjs";
import { output, root, SetupError } from "./lib/tools.mjs";

const { values } = parseArgs({ options: { build: { type: "boolean" }, output: { type: "string" } } });
const target = values.output ?? join(root, "build", "Release");

/** A crash of a prebuild that does not suit this machine must not be a crash of npm. */
function prebuildLoads() {
  const locate = join(root, "dist", "locate.js");
  if (!existsSync(join(root, "prebuilds")) || !existsSync(locate)) return false;
  const script = `import(${JSON.stringify(locate)}).then((m) => console.log("loaded", m.loadAddon().version))`;
  return output(process.execPath, ["--input-type=module", "-e", script], { cwd: root })?.startsWith("loaded") === true;
}

const isCheckout = existsSync(join(root, ".git"));
try {
  if (values.build || isCheckout || !prebuildLoads()) buildRelease(target);
} catch (error) {
  // What an earlier build left must not run in place of what does not build now.
  rmSync(join(target, "baton.node"), { force: true });
  if (!(error instanceof SetupError)) throw error;
  console.error(`baton: the native code cannot be built: ${error.message}`);
  process.exitCode = 1;
}
