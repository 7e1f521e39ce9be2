/** The sources of the repository, for formatters and checkers. */
import { readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { output, root } from "./tools.mjs";

/** Files below `folder` (of the repository) whose name matches, as paths from the repository's root. */
export function sources(folder, pattern) {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && pattern.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    .sort();
}

/** Those of `sources` that differ from the last commit, or are new; none where there is no git. */
export function changed(folder, pattern) {
  const git = (...args) => (output("git", args, { cwd: root }) ?? "").split("\n");
  const names = new Set([
    ...git("diff", "--name-only", "--relative", "HEAD", "--", folder),
    ...git("ls-files", "--others", "--exclude-standard", "--", folder),
  ]);
  return sources(folder, pattern).filter((file) => names.has(file));
}
