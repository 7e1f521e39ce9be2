/** Folders that are named by a user. */
import { mkdirSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { BatonError } from "./errors.js";

/**
 * Makes a folder and those above it that are missing. Node's own recursive mkdir never comes back where the file system
 * denies that the folder exists in which it is asked to make one, as /proc does.
 *
 * @throws the errors of the file system
 */
export function makeFolder(path: string): void {
  const missing: string[] = [];
  for (let folder = resolve(path); !isThere(folder); folder = dirname(folder)) missing.push(folder);
  for (const folder of missing.reverse()) makeOne(folder);
}

/** What is there and is no folder is an error of the mkdir below it, which says so. */
function isThere(path: string): boolean {
  return dirname(path) === path || statSync(path, { throwIfNoEntry: false }) !== undefined;
}

function makeOne(path: string): void {
  try {
    mkdirSync(path);
  } catch (error) {
    // Another process may have been faster.
    if ((error as NodeJS.ErrnoException).code !== "EEXIST" || !isThere(path)) throw error;
  }
}

/** @param cause an error of the file system, from making the folder or from writing there */
export function folderUnusable(path: string, cause: unknown): BatonError {
  return new BatonError(
    {
      code: "RUN_FOLDER_UNUSABLE",
      message: `The folder ${path} cannot be used.`,
      expected: "a folder that can be made and written",
      found: (cause as Error).message,
      action: "Name another folder with --out.",
    },
    { cause },
  );
}
