import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { choosePython } from "../../src/cli/choose-python.js";
import { packageRoot } from "../../src/cli/package.js";
import {
  findOnPath,
  findPython,
  interpreterOf,
  pinnedPackages,
  probePython,
  pythonCandidates,
} from "../../src/cli/python.js";
import { splitWords } from "../../src/cli/run.js";
import { setup, venvFolder } from "../../src/cli/setup.js";
import { BatonError } from "../../src/errors.js";

let folder: string;
const python = findOnPath("python3", process.env) as string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-test-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

function program(path: string, text: string): string {
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, text);
  chmodSync(path, 0o755);
  return path;
}

describe("a Python", () => {
  it("is asked for packages without importing them", async () => {
    const probe = await probePython(python, ["json", "no_such_package", "xml.no_such_part"]);
    expect(probe?.missing).toEqual(["no_such_package", "xml.no_such_part"]);
    expect(await probePython(join(folder, "none"), [])).toBeNull();
  });

  it("is asked for whatever is pinned, by the name that is installed", async () => {
    const pinned = pinnedPackages(packageRoot);
    expect(pinned).toEqual(expect.arrayContaining(["torch", "msgspec", "nvidia-ml-py", "peft", "math-verify"]));
    const lines = readFileSync(join(packageRoot, "python/requirements.txt"), "utf8").split("\n");
    const names = lines.filter((line) => line.includes("==")).map((line) => line.split("==")[0]);
    expect(new Set(pinned)).toEqual(new Set([...names, "torch", "numpy", "msgspec"]));
    // One that is installed as some-thing and imported as another name, and one that has no metadata.
    const site = join(folder, "site");
    mkdirSync(join(site, "some_thing-1.5.dist-info"), { recursive: true });
    writeFileSync(
      join(site, "some_thing-1.5.dist-info/METADATA"),
      "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.5\n",
    );
    writeFileSync(join(site, "plain_module.py"), "");
    const own = program(join(folder, "bin/python"), `#!/bin/sh\nPYTHONPATH=${site} exec ${python} "$@"\n`);
    const probe = await probePython(own, ["some-thing", "plain-module", "neither-of-them"]);
    expect(probe).toMatchObject({ missing: ["neither-of-them"], versions: { "some-thing": "1.5" } });
  });

  it("is looked for in a fixed order, each one once", () => {
    const inVenv = join(folder, "venv/bin/python");
    mkdirSync(join(folder, "venv/bin"), { recursive: true });
    symlinkSync(python, inVenv);
    const environment = { VIRTUAL_ENV: join(folder, "venv"), PATH: `${join(folder, "venv/bin")}:/usr/bin` };
    expect(pythonCandidates(environment, folder, folder)[0]).toBe(inVenv);
    expect(pythonCandidates({ ...environment, BATON_PYTHON: "/x/python" }, folder, folder)).toEqual(["/x/python"]);
    expect(pythonCandidates({ PATH: "" }, folder, folder)).toEqual([]);
  });

  it("that lacks packages is named with them, and what to do", async () => {
    const environment = { BATON_PYTHON: python, PATH: process.env.PATH };
    await expect(findPython(["json", "no_such_package"], environment, folder, folder)).rejects.toMatchObject({
      code: "PYTHON_PACKAGE_MISSING",
      message: `${python} lacks no_such_package.`,
      action: expect.stringContaining("baton setup"),
    });
    await expect(findPython([], { PATH: "" }, folder, folder)).rejects.toMatchObject({ code: "PYTHON_MISSING" });
  });

  describe("that is too new or too old", () => {
    /** The interpreter of the tests, which says that it is of another version. */
    const claiming = (minor: number): string => {
      const site = join(folder, `site-3.${minor}`);
      mkdirSync(site, { recursive: true });
      const claim = `import sys\nsys.version_info = (3, ${minor}, 1, "final", 0)\n`;
      writeFileSync(join(site, "sitecustomize.py"), claim);
      return program(join(folder, `bin/python3.${minor}`), `#!/bin/sh\nPYTHONPATH=${site} exec ${python} "$@"\n`);
    };

    it.each([9, 14, 15])("is refused at once: 3.%i", async (minor) => {
      const environment = { BATON_PYTHON: claiming(minor), PATH: process.env.PATH };
      const refused = {
        code: "PYTHON_UNSUPPORTED",
        expected: "Python 3.10 to 3.13",
        found: `${environment.BATON_PYTHON} is Python 3.${minor}`,
        action: expect.stringContaining("python3.13"),
      };
      await expect(findPython(["json"], environment, folder, folder)).rejects.toMatchObject(refused);
      const said: string[] = [];
      mkdirSync(join(folder, "python"));
      writeFileSync(join(folder, "python/requirements.txt"), "json\n");
      const options = {
        packageRoot: folder,
        folder,
        environment,
        hasGpu: false,
        trains: true,
        say: (line: string) => said.push(line),
      };
      // Before anything is made or downloaded.
      await expect(setup(options)).rejects.toMatchObject(refused);
      expect(existsSync(join(folder, ".venv"))).toBe(false);
    });

    it("is passed over where there is another", async () => {
      for (const minor of [14, 12]) claiming(minor);
      symlinkSync(join(folder, "bin/python3.14"), join(folder, "bin/python3"));
      const found = await findPython(["json"], { PATH: join(folder, "bin") }, folder, folder);
      expect(found).toMatchObject({ path: join(folder, "bin/python3.12"), version: [3, 12] });
    });
  });

  it("of a script is the one in its first line", () => {
    const environment = { PATH: folder };
    program(join(folder, "plain"), `#!${python}\nprint(1)\n`);
    program(join(folder, "long"), `#!/bin/sh\n'''exec' '${python}' "$0" "$@"\n' '''\n`);
    program(join(folder, "shell"), "#!/bin/sh\ntrue\n");
    expect(interpreterOf("plain", environment)).toBe(python);
    expect(interpreterOf("long", environment)).toBe(python);
    expect(interpreterOf("shell", environment)).toBeNull();
    expect(interpreterOf(python, environment)).toBe(python);
    expect(interpreterOf("nothing", environment)).toBeNull();
  });
});

describe("the words of `baton run`", () => {
  const argv = (text: string): string[] => ["node", "baton", "run", ...text.split(" ")];
  it("are a recipe and a command", () => {
    expect(splitWords(["r.yaml", "a", "--b"], argv("r.yaml -- a --b"))).toEqual({
      recipePath: "r.yaml",
      command: ["a", "--b"],
    });
    expect(splitWords(["a"], argv("--tp 2 -- a"))).toEqual({ recipePath: null, command: ["a"] });
  });
  it("need a command", () => {
    expect(() => splitWords(["r.yaml"], argv("r.yaml"))).toThrow(BatonError);
    expect(() => splitWords(["r.yaml"], argv("r.yaml --"))).toThrow("no command");
  });
});

describe("the folder of the virtual environment", () => {
  it("is the checkout's own, or the user's when the package was installed by npm", () => {
    expect(venvFolder({ packageRoot: "/src/baton", folder: "/home" })).toBe("/src/baton/.venv");
    expect(venvFolder({ packageRoot: "/home/node_modules/gpu-baton", folder: "/home" })).toBe("/home/.venv");
  });
});

describe("the Python of a command", () => {
  /** An interpreter that answers the question for its packages by itself. */
  const answering = (path: string, missing: readonly string[], minor = 11): string =>
    program(
      join(folder, path),
      `#!/bin/sh\necho '${JSON.stringify({ version: [3, minor], prefix: "/", versions: {}, missing })}'\n`,
    );
  const said: string[] = [];
  const choose = (words: readonly string[], environment: NodeJS.ProcessEnv = {}) =>
    choosePython(words, {
      environment: { PATH: join(folder, "bin"), ...environment },
      packageRoot: folder,
      folder: join(folder, "elsewhere"),
      say: (line) => said.push(line),
    });
  beforeEach(() => said.splice(0));

  it.each(["python", "python3"])("is the one on PATH when bare `%s` has everything", async (name) => {
    const path = answering(`bin/${name}`, []);
    answering(".venv/bin/python", []);
    expect(await choose([name, "x.py"])).toEqual({ command: [name, "x.py"], python: path });
    expect(said).toEqual([]);
  });

  it.each(["python", "python3"])("is the one of `baton setup` when bare `%s` lacks packages", async (name) => {
    const bare = answering(`bin/${name}`, ["torch"]);
    const ready = answering(".venv/bin/python", []);
    expect(await choose([name, "-m", "torch.distributed.run"])).toEqual({
      command: [ready, "-m", "torch.distributed.run"],
      python: ready,
    });
    expect(said).toEqual([`${bare}, which \`${name}\` is on PATH, lacks torch: the command runs with ${ready}`]);
  });

  it("is the one in BATON_PYTHON when the bare one is too new, or does not run", async () => {
    const ready = answering("named/python", []);
    answering("bin/python", [], 14);
    program(join(folder, "bin/python3"), "#!/bin/sh\nexit 127\n");
    for (const name of ["python", "python3"]) {
      expect(await choose([name], { BATON_PYTHON: ready })).toEqual({ command: [ready], python: ready });
    }
    expect(said.map((line) => line.replace(/.* is on PATH, /, ""))).toEqual([
      `is Python 3.14: the command runs with ${ready}`,
      `does not run: the command runs with ${ready}`,
    ]);
  });

  it("is left alone where its path is given, with the path of the one that has everything", async () => {
    const explicit = answering("bin/python", ["torch", "msgspec"]);
    const ready = answering(".venv/bin/python", []);
    await expect(choose([explicit, "x.py"])).rejects.toMatchObject({
      code: "PYTHON_PACKAGE_MISSING",
      message: `${explicit}, which runs the command, lacks torch, msgspec.`,
      action: `Start the command with ${ready}, which has them, or install the packages there.`,
    });
    expect(said).toEqual([]);
  });

  it("of a script names the script beside the complete one", async () => {
    const other = answering("bin/python", ["torch"]);
    program(join(folder, "bin/accelerate"), `#!${other}\n`);
    answering(".venv/bin/python", []);
    const beside = program(join(folder, ".venv/bin/accelerate"), "#!/bin/sh\n");
    await expect(choose(["accelerate"])).rejects.toMatchObject({ action: expect.stringContaining(` ${beside},`) });
  });

  it("that lacks packages with none to take its place says how to get one", async () => {
    answering("bin/python", ["torch"]);
    await expect(choose(["python"])).rejects.toMatchObject({
      code: "PYTHON_PACKAGE_MISSING",
      action: expect.stringContaining("baton setup"),
    });
  });
});
