/** What reads the output may end before the command does: `baton run … | head`, or a `tee` whose disk is full. */

const CLOSED = new Set(["EPIPE", "ERR_STREAM_DESTROYED"]);

/** From now on nothing that this process prints can end it: a run's results are in its files. */
export function outliveReaders(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (!CLOSED.has(error.code ?? "")) throw error;
    });
  }
}
