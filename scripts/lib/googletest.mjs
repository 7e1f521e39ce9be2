/** GoogleTest for the native tests: the system's, else its sources from the distribution, unpacked under build/. */
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { output, root, run, SetupError, which } from "./tools.mjs";

const advice = "Install it: apt-get install libgtest-dev (Debian, Ubuntu), dnf install gtest-devel (Fedora, RHEL)";

/** cmake variables that make find_package or add_subdirectory work. */
export function googletestVariables() {
  if (existsSync("/usr/include/gtest/gtest.h") || existsSync("/usr/local/include/gtest/gtest.h")) return {};
  const folder = join(root, "build", "tools", "googletest");
  const sources = join(folder, "usr", "src", "googletest");
  if (!existsSync(join(sources, "CMakeLists.txt"))) unpack(folder);
  return { BATON_GTEST_SOURCE: sources };
}

/** Needs no rights: the package is only downloaded and unpacked. */
function unpack(folder) {
  if (which("apt-get") === null || which("dpkg-deb") === null) throw new SetupError(`no GoogleTest.\n  ${advice}`);
  console.error("baton: no GoogleTest; unpacking its sources from the Debian package into build/tools");
  mkdirSync(folder, { recursive: true });
  const download = () => output("apt-get", ["download", "googletest"], { cwd: folder }) !== null;
  if (!download()) {
    // A machine that has never asked for the lists of packages; only root may.
    output("apt-get", ["update"]);
    if (!download()) throw new SetupError(`no GoogleTest, and its package could not be downloaded.\n  ${advice}`);
  }
  const archive = readdirSync(folder).find((name) => name.endsWith(".deb"));
  run("dpkg-deb", ["-x", join(folder, archive ?? ""), folder]);
}
