/** The end of a command that Ctrl-C has stopped. */
import { constants } from "node:os";
import { BatonError } from "../errors.js";

/** What `work` returns, or the exit code that a shell expects when it was interrupted before anything was left behind. */
export async function orInterrupted(work: () => Promise<number>): Promise<number> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof BatonError) || error.code !== "INTERRUPTED") throw error;
    process.stderr.write(`${error.describe()}\n`);
    return 128 + (constants.signals[error.found as NodeJS.Signals] ?? 0);
  }
}
