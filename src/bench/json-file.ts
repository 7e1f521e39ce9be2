/** The file that figures are written to. A bench takes minutes, so a path that cannot be written is found before it. */
import { closeSync, existsSync, openSync, rmSync, writeFileSync } from "node:fs";
import { BatonError } from "../errors.js";

/** @throws BatonError JSON_FILE_UNUSABLE when it could not be written now; what is there stays as it is */
export function checkJsonFile(path: string): void {
  const isNew = !existsSync(path);
  orUnusable(path, () => closeSync(openSync(path, "a")));
  if (isNew) rmSync(path);
}

/** @throws BatonError JSON_FILE_UNUSABLE */
export function writeJsonFile(path: string, value: unknown): void {
  orUnusable(path, () => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`));
}

function orUnusable(path: string, action: () => void): void {
  try {
    action();
  } catch (error) {
    throw new BatonError(
      {
        code: "JSON_FILE_UNUSABLE",
        message: `The figures cannot be written to ${path}.`,
        expected: "a file that can be written, in a folder that is there",
        found: (error as Error).message,
        action: "Name another file with --json.",
      },
      { cause: error },
    );
  }
}
