/** The sources of the repository, for formatters and checkers. */
import { readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { root } from "./tools.mjs";

/** Files below `folder` (of the repository) whose name matches, as paths from the repository's root. */
export function sources(folder, pattern) {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && pattern.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    .sort();
}
