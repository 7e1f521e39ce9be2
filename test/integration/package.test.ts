/** The package as it is shipped, and the checkout as it is installed: what must run, and what must not. */
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ALL } from "./extent.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const temporary: string[] = [];
afterAll(() => {
  for (const folder of temporary) rmSync(folder, { recursive: true, force: true });
});

function folderIn(parent: string): string {
  mkdirSync(parent, { recursive: true });
  const folder = mkdtempSync(join(parent, "baton-package-"));
  temporary.push(folder);
  return folder;
}

/** A folder for PATH with nothing but these programs. */
function pathWith(...programs: string[]): string {
  const folder = folderIn(tmpdir());
  for (const program of programs) {
    const found = (process.env.PATH ?? "")
      .split(delimiter)
      .map((each) => join(each, program))
      .find(existsSync);
    if (found !== undefined) symlinkSync(found, join(folder, program));
  }
  // What is first on PATH may be a shim that needs the rest of PATH.
  const python = spawnSync("python3", ["-c", "import sys; print(sys.executable)"], { encoding: "utf8" }).stdout.trim();
  writeFileSync(join(folder, "python3"), `#!/bin/sh\nexec ${python} "$@"\n`, { mode: 0o755 });
  return folder;
}

const ESSENTIAL = ["sh", "bash", "env", "node", "npm", "npx", "dirname", "uname", "sed", "rm", "cat"];

interface RunOptions {
  readonly cwd: string;
  readonly path?: string;
  readonly env?: NodeJS.ProcessEnv;
}

function run(command: string, args: readonly string[], { cwd, path, env }: RunOptions): SpawnSyncReturns<string> {
  const environment: NodeJS.ProcessEnv = { ...process.env, ...env, NODE_OPTIONS: "" };
  // npm hands its own settings down to what it starts; a fresh user has none of them.
  for (const name of Object.keys(environment))
    if (/^npm_(package|lifecycle|command)/.test(name)) delete environment[name];
  if (path !== undefined) environment.PATH = path;
  return spawnSync(command, args, { cwd, env: environment, encoding: "utf8", timeout: 280_000 });
}

function expectGood(result: SpawnSyncReturns<string>): string {
  expect(result.status, `${result.stdout}\n${result.stderr}\n${result.error?.message ?? ""}`).toBe(0);
  return result.stdout;
}

describe("the tarball, installed in another folder without a script and without a compiler", () => {
  let folder = "";
  let installed = "";
  let path = "";
  const node = (script: string, options: Partial<RunOptions> = {}): SpawnSyncReturns<string> =>
    run("node", ["--input-type=module", "-e", script], { cwd: folder, path, ...options });

  beforeAll(() => {
    folder = folderIn(tmpdir());
    path = pathWith(...ESSENTIAL);
    expectGood(run("npm", ["pack", "--pack-destination", folder], { cwd: root }));
    const tarball = readdirSync(folder).find((name) => name.endsWith(".tgz")) ?? "";
    writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "user", private: true, type: "module" }));
    const flags = ["--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund"];
    expectGood(run("npm", ["install", ...flags, `./${tarball}`], { cwd: folder, path }));
    installed = join(folder, "node_modules", "gpu-baton");
  });

  test("holds what it must and nothing else", () => {
    for (const file of [
      "README.md",
      "CMakeLists.txt",
      "binding.gyp",
      "python/src/baton/__init__.py",
      "dist/native.js",
    ]) {
      expect(existsSync(join(installed, file)), file).toBe(true);
    }
    const all = readdirSync(installed, { recursive: true, encoding: "utf8" });
    expect(
      all.filter((name) => /__pycache__|\.pyc$|\.test\.|^native\/test|^build\b|^src\b|\.[jt]s\.map$/.test(name)),
    ).toEqual([]);
    // The stand-ins are never beside the addon.
    const prebuilds = join(installed, "prebuilds", `${process.platform}-${process.arch}`);
    expect(readdirSync(prebuilds).filter((name) => /libcuda|nvidia/.test(name))).toEqual([]);
    expect(readdirSync(join(prebuilds, "standin")).sort()).toEqual(["libcuda.so.1", "libnvidia-ml.so.1"]);
  });

  test("the addon loads from its prebuild", () => {
    const out = expectGood(
      node(`
        import { readFileSync } from "node:fs";
        import * as native from "gpu-baton/native";
        const pidfd = native.openPidfd(process.pid);
        pidfd.close();
        const maps = readFileSync("/proc/self/maps", "utf8");
        console.log(native.addonVersion(), /\\/prebuilds\\/.*\\.node$/m.test(maps), maps.includes("libcuda"));
      `),
    );
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
    expect(out.trim()).toBe(`${version} true false`);
  });

  test("its errors are the package's BatonError", () => {
    const out = expectGood(
      node(`
        import { openPidfd } from "gpu-baton/native";
        import { BatonError } from "gpu-baton/errors";
        try { openPidfd(4194304); } catch (error) { console.log(error instanceof BatonError, error.code); }
      `),
    );
    expect(out.trim()).toBe("true PROCESS_NOT_FOUND");
  });

  test("libbaton.so opens in Python, and stand-in memory can be allocated, written and returned", () => {
    const paths = expectGood(
      node(`
        import { libbatonPath, standinFolder, guardPath, probePath, pythonPath } from "gpu-baton/native";
        console.log(JSON.stringify([libbatonPath(), standinFolder(), guardPath(), pythonPath(), probePath()]));
      `),
    );
    const [libbaton, standin, guard, python, probe] = JSON.parse(paths) as [string, string, string, string, string];
    for (const each of [libbaton, standin, guard, python, probe]) expect(each.startsWith(installed)).toBe(true);
    const script = `
import ctypes, sys
baton = ctypes.CDLL(sys.argv[1])
baton.baton_last_error.restype = ctypes.c_char_p
class Info(ctypes.Structure):
    _fields_ = [("available", ctypes.c_int32), ("simulated", ctypes.c_int32), ("version", ctypes.c_int32),
                ("devices", ctypes.c_int32), ("path", ctypes.c_char * 512), ("reason", ctypes.c_char * 512)]
class Options(ctypes.Structure):
    _fields_ = [("device", ctypes.c_int32), ("exportable", ctypes.c_int32), ("segment", ctypes.c_uint64),
                ("reserve", ctypes.c_uint64), ("name", ctypes.c_char * 32)]
def call(name, *arguments):
    if getattr(baton, name)(*arguments) != 0:
        raise SystemExit(baton.baton_last_error().decode())
def free():
    free_bytes, total = ctypes.c_uint64(), ctypes.c_uint64()
    call("baton_device_memory", 1, ctypes.byref(free_bytes), ctypes.byref(total))
    return free_bytes.value
info = Info()
call("baton_driver_probe", ctypes.byref(info))
assert (info.available, info.simulated, info.devices) == (1, 1, 2), info.reason
before = free()
pool = ctypes.c_void_p()
call("baton_pool_create", ctypes.byref(Options(1, 1, 0, 0, b"test")), ctypes.byref(pool))
address = ctypes.c_uint64()
call("baton_pool_allocate", pool, ctypes.c_uint64(5 << 20), ctypes.c_uint64(256), ctypes.byref(address))
ctypes.memset(address.value, 0x5A, 5 << 20)
assert ctypes.string_at(address.value + (5 << 20) - 1, 1) == b"\\x5a"
taken = before - free()
call("baton_pool_destroy", pool)
print(taken, before - free())
`;
    const env = {
      LD_LIBRARY_PATH: standin,
      BATON_STANDIN_TABLE: join(folder, "standin-table"),
      BATON_STANDIN_DEVICES: "2",
      BATON_STANDIN_BYTES: String(2 ** 28),
    };
    const out = expectGood(run("python3", ["-c", script, libbaton], { cwd: folder, path, env }));
    expect(out.trim()).toBe(`${6 << 20} 0`);
    expect(run(guard, [], { cwd: folder, path }).status).toBe(125);
    expect(run(probe, [], { cwd: folder, path }).status).toBe(125);
  });

  test("the stand-ins are found only by who asks for them", () => {
    const script = `
import ctypes
for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
    try:
        library = ctypes.CDLL(name)
    except OSError:
        continue
    assert not hasattr(library, "batonStandinVersion"), name
`;
    expectGood(run("python3", ["-c", script], { cwd: folder, path }));
  });

  test("baton --version and baton --help run", () => {
    const baton = join(folder, "node_modules", ".bin", "baton");
    expect(expectGood(run(baton, ["--version"], { cwd: folder, path }))).toMatch(/^\d+\.\d+\.\d+/);
    expect(expectGood(run(baton, ["--help"], { cwd: folder, path }))).toMatch(/run.*demo/s);
  });

  test("its install script builds nothing, and without a prebuild says what is missing", () => {
    expectGood(run("node", ["scripts/install.mjs"], { cwd: installed, path }));
    expect(existsSync(join(installed, "build"))).toBe(false);
    const prebuilds = join(installed, "prebuilds");
    renameSync(prebuilds, `${prebuilds}.away`);
    try {
      const failed = run("node", ["scripts/install.mjs"], { cwd: installed, path });
      expect(failed.status).toBe(1);
      expect(failed.stderr).toContain("no C++ compiler");
      expect(failed.stderr).toContain("apt-get install g++");
      expect(failed.stderr).not.toContain("    at ");
      const loading = node(`
        import { addonVersion } from "gpu-baton/native";
        try { addonVersion(); } catch (error) { console.log(error.describe()); }
      `);
      expect(loading.stdout).toContain("ADDON_NOT_LOADED");
      expect(loading.stdout).toContain(join(installed, "prebuilds"));
      expect(loading.stdout).toContain(join(installed, "build", "Release", "baton.node"));
      expect(loading.stdout).toContain("npm rebuild gpu-baton");
    } finally {
      renameSync(`${prebuilds}.away`, prebuilds);
    }
  });

  test("a prebuild that does not load is named with its error", () => {
    const prebuilds = join(installed, "prebuilds", `${process.platform}-${process.arch}`);
    const name = readdirSync(prebuilds).find((each) => each.endsWith(".node")) ?? "";
    const file = join(prebuilds, name);
    const good = readFileSync(file);
    rmSync(file);
    writeFileSync(file, "not a library");
    try {
      const loading = node(`
        import { addonVersion } from "gpu-baton/native";
        try { addonVersion(); } catch (error) { console.log(error.describe()); }
      `);
      expect(loading.stdout).toContain(`${file}: `);
      expect(loading.stdout).toMatch(/invalid ELF header|file too short/);
    } finally {
      rmSync(file);
      writeFileSync(file, good, { mode: 0o755 });
    }
  });
});

/** What a checkout needs to be installed, without the parts that only take time to compile. */
// A minute of compiling, as every `npm install` in a checkout does it.
describe.runIf(ALL)("npm install in a checkout", () => {
  let checkout = "";
  let path = "";
  // The wheels of cmake and ninja come from PyPI: as on a machine with a compiler and without cmake.
  const TOOLS = ["c++", "g++", "gcc", "cc", "as", "ld", "ar", "ranlib", "strip", "nm", "git", "flock", "tail", "grep"];
  const install = (): SpawnSyncReturns<string> =>
    run("npm", ["install", "--offline", "--no-audit", "--no-fund", "--foreground-scripts"], { cwd: checkout, path });
  const version = (): SpawnSyncReturns<string> =>
    run("node", ["-p", `require(${JSON.stringify(join(checkout, "build/Release/baton.node"))}).version`], {
      cwd: checkout,
      path,
    });

  beforeAll(() => {
    // On the same file system as node_modules, which is linked file by file.
    checkout = folderIn(join(root, "build", "test"));
    path = pathWith(...ESSENTIAL, ...TOOLS);
    mkdirSync(join(checkout, ".git"));
    for (const name of ["package.json", "package-lock.json", "CMakeLists.txt", "binding.gyp", "tsconfig.json"]) {
      cpSync(join(root, name), join(checkout, name));
    }
    for (const name of [
      "scripts",
      "native/addon",
      "native/system",
      "native/driver",
      "native/monitor",
      "native/guard",
      "native/copy/checksum.h",
    ]) {
      cpSync(join(root, name), join(checkout, name), { recursive: true });
    }
    mkdirSync(join(checkout, "src"));
    for (const name of ["native.ts", "locate.ts", "errors.ts"]) {
      cpSync(join(root, "src", name), join(checkout, "src", name));
    }
    cpSync(join(root, "tsconfig.build.json"), join(checkout, "tsconfig.build.json"));
    expectGood(run("cp", ["-al", join(root, "node_modules"), join(checkout, "node_modules")], { cwd: root }));
  });

  test("gets cmake where there is none, builds, and runs", () => {
    const out = install();
    expectGood(out);
    expect(existsSync(join(checkout, "build", "tools", "bin", "cmake"))).toBe(true);
    expect(existsSync(join(checkout, "dist", "native.js"))).toBe(true);
    expect(expectGood(version()).trim()).toBe(JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version);
  });

  test("after a change of native code the new code runs", () => {
    const file = join(checkout, "native/addon/module.cc");
    const text = readFileSync(file, "utf8");
    expect(text).toContain('exports.Set("version", BATON_VERSION)');
    writeFileSync(
      file,
      text.replace('exports.Set("version", BATON_VERSION)', 'exports.Set("version", "0.0.0-changed")'),
    );
    const out = install();
    expectGood(out);
    expect(expectGood(version()).trim()).toBe("0.0.0-changed");
    // Only what changed was compiled.
    expect((out.stdout.match(/Building CXX object/g) ?? []).length).toBe(1);
  });

  test("C++ that does not compile makes it fail, and leaves no addon of before", () => {
    appendFileSync(join(checkout, "native/addon/module.cc"), "\nthis is not C++;\n");
    const out = install();
    expect(out.status).not.toBe(0);
    expect(`${out.stdout}${out.stderr}`).toContain("this is not C++");
    expect(existsSync(join(checkout, "build/Release/baton.node"))).toBe(false);
    expect(version().status).not.toBe(0);
  });
});
