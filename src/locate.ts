/** Finds and loads what was built from native/: in a checkout under build/Release, in a package under prebuilds/. */
import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { BatonError } from "./errors.js";
import type { Addon } from "./native.js";

/** The folder of package.json; this file is src/locate.ts or dist/locate.js. */
const root = fileURLToPath(new URL("..", import.meta.url));

/** Folders of native files, the one that counts first. */
interface Candidate {
  readonly folder: string;
  readonly kind: "checkout" | "prebuild";
}

function candidates(): Candidate[] {
  const prebuild: Candidate = {
    folder: join(root, "prebuilds", `${process.platform}-${process.arch}`),
    kind: "prebuild",
  };
  const built: Candidate = { folder: join(root, "build", "Release"), kind: "checkout" };
  // A checkout never falls back to a prebuild: it would hide that its own sources do not build.
  if (existsSync(join(root, ".git"))) return [built];
  // A package that was compiled at install, because its prebuild did not load, uses what it compiled.
  return existsSync(join(built.folder, "baton.node")) ? [built, prebuild] : [prebuild, built];
}

const isMusl = (): boolean => {
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined;
  return report?.header?.glibcVersionRuntime === undefined;
};

/** The addon's file in a folder; prebuildify puts the package's name and the C library into it. */
function addonFile(candidate: Candidate): string | null {
  if (candidate.kind === "checkout") return join(candidate.folder, "baton.node");
  if (!existsSync(candidate.folder)) return null;
  const libc = isMusl() ? "musl" : "glibc";
  const name = readdirSync(candidate.folder).find((file) => file.endsWith(`.${libc}.node`));
  return name === undefined ? null : join(candidate.folder, name);
}

/** What to do about files that are missing or do not load. */
function mending(): string {
  return existsSync(join(root, ".git"))
    ? "Run `npm install` in the checkout; it builds the native code and shows what fails."
    : "Run `npm rebuild gpu-baton --foreground-scripts` to compile it here (needs a C++ compiler), or install " +
        "gpu-baton again on a Linux x86-64 machine with glibc 2.34 or newer.";
}

let addon: Addon | null = null;
let folder: string | null = null;

/** @throws BatonError ADDON_NOT_LOADED with every place that was tried and what went wrong there */
export function loadAddon(): Addon {
  if (addon !== null) return addon;
  const require = createRequire(import.meta.url);
  const problems: string[] = [];
  for (const candidate of candidates()) {
    const file = addonFile(candidate);
    if (file === null || !existsSync(file)) {
      problems.push(`${file ?? candidate.folder}: no such file`);
      continue;
    }
    try {
      const loaded = require(file) as Addon;
      loaded.initialize(BatonError);
      addon = loaded;
      folder = candidate.folder;
      return loaded;
    } catch (error) {
      problems.push(`${file}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw new BatonError({
    code: "ADDON_NOT_LOADED",
    message: "The native addon of Baton cannot be loaded.",
    expected: `an addon for ${process.platform}-${process.arch}, Node.js ${process.versions.node}`,
    found: problems.join("; "),
    action: mending(),
  });
}

/** A file beside the addon, so that all of them are of one build. */
function beside(...name: string[]): string {
  let base = folder;
  if (base === null) {
    const first = candidates().find((candidate) => existsSync(join(candidate.folder, ...name)));
    base = first?.folder ?? candidates()[0]?.folder ?? root;
  }
  const path = join(base, ...name);
  if (existsSync(path)) return path;
  throw new BatonError({
    code: "NATIVE_FILE_MISSING",
    message: `A file of Baton's native code is missing: ${name.join("/")}.`,
    expected: path,
    found: "no such file",
    action: mending(),
  });
}

/** libbaton.so, for Python. @throws BatonError NATIVE_FILE_MISSING */
export const libbatonPath = (): string => beside("libbaton.so");

/** The baton-guard executable. @throws BatonError NATIVE_FILE_MISSING */
export const guardPath = (): string => beside("baton-guard");

/** The baton-probe executable. @throws BatonError NATIVE_FILE_MISSING */
export const probePath = (): string => beside("baton-probe");

/** The folder with the stand-in libcuda.so.1 and libnvidia-ml.so.1. @throws BatonError NATIVE_FILE_MISSING */
export const standinFolder = (): string => {
  beside("standin", "libcuda.so.1");
  return beside("standin");
};

/** The folder to put in front of PYTHONPATH. */
export const pythonPath = (): string => join(root, "python", "src");
