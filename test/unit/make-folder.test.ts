import { mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { takeRunFolder } from "../../src/controller/folders.js";
import { makeFolder } from "../../src/make-folder.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "baton-folder-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

it("a folder is made with those above it, and may be there", () => {
  const path = join(folder, "a/b/c");
  makeFolder(path);
  makeFolder(path);
  expect(statSync(path).isDirectory()).toBe(true);
  makeFolder("/");
});

it("a folder that cannot be made is an error, also below a file and below a link to nothing", () => {
  writeFileSync(join(folder, "file"), "");
  symlinkSync(join(folder, "nothing"), join(folder, "link"));
  expect(() => makeFolder(join(folder, "file/a/b"))).toThrow(/ENOTDIR/);
  expect(() => makeFolder(join(folder, "link"))).toThrow(/EEXIST/);
});

it.each(["/proc/x", "/proc/self/a/b"])("the folder of a run in %s is refused at once", (path) => {
  expect(() => takeRunFolder(path)).toThrow(
    expect.objectContaining({ code: "RUN_FOLDER_UNUSABLE", found: expect.stringContaining("ENOENT") }),
  );
});
