/** Finding and running the tools of the native build. No dependency: this runs before anything is installed. */
import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of package.json. */
export const root = fileURLToPath(new URL("../..", import.meta.url));

/** Something that the user must put right; shown without a stack. */
export class SetupError extends Error {}

/** First executable of that name on PATH, or null. */
export function which(name, path = process.env.PATH ?? "") {
  for (const folder of path.split(delimiter)) {
    if (folder === "") continue;
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {}
  }
  return null;
}

/** Runs a command with its output shown; throws SetupError when it fails. */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, { stdio: "inherit", cwd: root, ...options });
  if (result.error) throw new SetupError(`${command}: ${result.error.message}`);
  if (result.status !== 0) {
    const how = result.signal ? `was ended by ${result.signal}` : `exited with ${result.status}`;
    throw new SetupError(`${[command, ...args].join(" ")} ${how}`);
  }
}

/** What a command prints, or null when it cannot run or fails. */
export function output(command, args, options = {}) {
  const result = spawnSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], ...options });
  return result.status === 0 ? result.stdout.trim() : null;
}

/** A C++20 compiler: CXX, else the first of c++, g++ and clang++. */
export function findCompiler() {
  const named = process.env.CXX;
  const found = named ? (which(named) ?? (existsSync(named) ? named : null)) : null;
  const compiler = named ? found : (which("c++") ?? which("g++") ?? which("clang++"));
  if (compiler === null) {
    throw new SetupError(
      `no C++ compiler${named ? ` (CXX is ${named})` : ""}.\n` +
        "  Install one: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL)",
    );
  }
  const probe = spawnSync(compiler, ["-std=c++20", "-fsyntax-only", "-x", "c++", "-"], {
    input: "#include <concepts>\n#include <span>\ntemplate <std::integral T> T same(T v) { return v; }\n",
    encoding: "utf8",
  });
  if (probe.status !== 0) {
    throw new SetupError(
      `${compiler} does not compile C++20.\n${probe.stderr ?? probe.error}\n  Install GCC 11 or newer.`,
    );
  }
  return compiler;
}

/** At least `major.minor`? */
function isVersion(text, major, minor) {
  const match = /(\d+)\.(\d+)/.exec(text ?? "");
  if (match === null) return false;
  const [found, foundMinor] = [Number(match[1]), Number(match[2])];
  return found > major || (found === major && foundMinor >= minor);
}

const CMAKE_VERSION = [3, 22];

/**
 * cmake and, where there is one, ninja: those of the system, else the wheels of PyPI in build/tools, which this
 * makes when it is not there.
 */
export function findBuildTools() {
  const tools = join(root, "build", "tools");
  const own = join(tools, "bin");
  const system = which("cmake");
  if (system !== null && isVersion(output(system, ["--version"]), ...CMAKE_VERSION)) {
    return { cmake: system, ninja: which("ninja") ?? which("ninja-build") };
  }
  if (which("cmake", own) === null || which("ninja", own) === null) installWheels(tools, own);
  return { cmake: join(own, "cmake"), ninja: join(own, "ninja") };
}

function installWheels(tools, own) {
  const wanted = `cmake ${CMAKE_VERSION.join(".")} or newer`;
  const advice = "  Install it: apt-get install cmake (Debian, Ubuntu), dnf install cmake (Fedora, RHEL)";
  const python = which("python3");
  if (python === null) throw new SetupError(`no ${wanted}, and no python3 to get it with.\n${advice}`);
  console.error(`baton: no ${wanted} on PATH; putting the wheels of cmake and ninja into build/tools`);
  mkdirSync(join(root, "build"), { recursive: true });
  try {
    // uv makes an environment also where Debian's python3 came without venv and pip.
    const uv = which("uv");
    if (uv !== null) {
      run(uv, ["venv", "--quiet", "--python", python, tools]);
      run(uv, ["pip", "install", "--quiet", "--python", join(own, "python"), "cmake>=3.22,<5", "ninja"]);
      return;
    }
    run(python, ["-m", "venv", "--clear", tools]);
    run(join(own, "python"), [
      ...["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"],
      ...["cmake>=3.22,<5", "ninja"],
    ]);
  } catch (error) {
    throw new SetupError(`${wanted} is missing, and its wheel could not be installed: ${error.message}\n${advice}`);
  }
}
