/** The package that this file is in. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** Folder of package.json; this file is src/cli/package.ts or dist/cli/package.js. */
export const packageRoot = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "");

export function packageVersion(): string {
  return (JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string }).version;
}

/** The version, and of a checkout the commit: "0.1.0 (23fbee1-dirty)". */
export function packageDescription(): string {
  // An installed package may lie in a repository of somebody else's.
  if (!existsSync(join(packageRoot, ".git"))) return packageVersion();
  try {
    const words = ["-C", packageRoot, "describe", "--always", "--dirty"];
    const commit = execFileSync("git", words, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
    return `${packageVersion()} (${commit})`;
  } catch {
    return packageVersion();
  }
}
