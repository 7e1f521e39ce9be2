import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FIRST_NODE, FIRST_PYTHON, isSupportedPython, LAST_PYTHON, versionText } from "../../src/versions.js";

const root = join(import.meta.dirname, "../..");
const text = (path: string): string => readFileSync(join(root, path), "utf8");
const node = versionText(FIRST_NODE);
const [first, last] = [versionText(FIRST_PYTHON), versionText(LAST_PYTHON)];

describe("the versions that Baton runs with", () => {
  it("are the same in what npm and pip read", () => {
    expect((JSON.parse(text("package.json")) as { engines: unknown }).engines).toEqual({ node: `>=${node}` });
    const beyond = versionText([LAST_PYTHON[0], LAST_PYTHON[1] + 1]);
    expect(text("python/pyproject.toml")).toContain(`requires-python = ">=${first},<${beyond}"`);
  });

  it("are what the README says", () => {
    expect(text("README.md")).toContain(`Node.js ${node} or newer, Python ${first} to ${last} and a C++ compiler`);
  });

  it("have ends", () => {
    const supported = [9, 10, 13, 14].filter((minor) => isSupportedPython([3, minor]));
    expect(supported).toEqual([10, 13]);
    expect(isSupportedPython([2, 12])).toBe(false);
  });
});
