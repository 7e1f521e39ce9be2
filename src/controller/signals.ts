/** Ctrl-C and its relatives, and exceptions that nobody caught: both must end a run in order. */

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

export interface Interrupt {
  /** Aborted by the second signal: the user does not want to wait for an orderly end. */
  readonly again: AbortSignal;
  remove(): void;
}

/** @param first called once, with the name of the first signal */
export function onInterrupt(first: (signal: string) => void): Interrupt {
  const again = new AbortController();
  let seen = false;
  const handler = (signal: NodeJS.Signals): void => {
    if (seen) again.abort();
    else first(signal);
    seen = true;
  };
  for (const signal of SIGNALS) process.on(signal, handler);
  return {
    again: again.signal,
    remove: () => {
      for (const signal of SIGNALS) process.off(signal, handler);
    },
  };
}

/** @param handle gets what was thrown or rejected. @returns undoes it */
export function onCrash(handle: (error: unknown) => void): () => void {
  process.on("uncaughtException", handle);
  process.on("unhandledRejection", handle);
  return () => {
    process.off("uncaughtException", handle);
    process.off("unhandledRejection", handle);
  };
}
