/** The folders of a run: DIR, which belongs to one run at a time, and the private one of its socket. */
import { existsSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { BatonError } from "../errors.js";
import { folderUnusable, makeFolder } from "../make-folder.js";
import { checkSocketPath } from "../recipe/index.js";
import { type Lock, LockHeld, lockHolder, takeLock } from "./lock.js";
import { ownedName } from "./ownership.js";

const LOCK = ".baton.lock";
/** What a run leaves in DIR, and what is left of it when it is killed while it writes. */
const RESULTS = ["events.jsonl", "summary.json", "trace.json", "logs"];
const DRAFTS = ["summary.json.new", "trace.json.new"];

/** DIR of a run, locked until `release`. */
export interface RunFolder {
  readonly path: string;
  /** Path of a file in it. */
  file(name: string): string;
  /** Gives the lock back; what was written stays. */
  release(): void;
}

/**
 * Takes DIR for this process, and makes it if need be. A lock of a process that is gone is taken over. The results of
 * a run before this one are moved to DIR/earlier-N, other files stay.
 *
 * @throws BatonError RUN_FOLDER_IN_USE when a run that is alive has it, RUN_FOLDER_UNUSABLE when it cannot be written
 */
export function takeRunFolder(path: string): RunFolder {
  let lock: Lock;
  try {
    makeFolder(path);
    lock = takeLock(join(path, LOCK));
    setResultsAside(path);
    mkdirSync(join(path, "logs"));
  } catch (error) {
    if (error instanceof LockHeld) throw inUse(path, error.pid);
    throw folderUnusable(path, error);
  }
  return { path, file: (name) => join(path, name), release: () => lock.release() };
}

/**
 * A run that is killed before it writes its own must not show the success, or the last words, of another. That one's are
 * kept: it may be the first part of a run that is being resumed.
 */
function setResultsAside(path: string): void {
  for (const name of DRAFTS) rmSync(join(path, name), { force: true });
  const results = RESULTS.filter((name) => existsSync(join(path, name)));
  if (results.length === 0) return;
  let number = 1;
  while (existsSync(join(path, `earlier-${number}`))) number += 1;
  const aside = join(path, `earlier-${number}`);
  mkdirSync(aside);
  for (const name of results) renameSync(join(path, name), join(aside, name));
}

/**
 * Whether `takeRunFolder` would find a run in this folder. Nothing is made or removed.
 *
 * @throws BatonError RUN_FOLDER_IN_USE
 */
export function checkRunFolder(path: string): void {
  const pid = lockHolder(join(path, LOCK));
  if (pid !== null) throw inUse(path, pid);
}

function inUse(path: string, pid: number): BatonError {
  return new BatonError({
    code: "RUN_FOLDER_IN_USE",
    message: `Another run is writing to ${path}.`,
    expected: "a folder that no running baton uses",
    found: `process ${pid} holds ${LOCK} in it`,
    action: "Name another folder with --out, or end that run first.",
  });
}

/** A folder that only this user can enter, with the path of the socket in it. */
export interface SocketFolder {
  readonly path: string;
  readonly socketPath: string;
  remove(): void;
}

/** Where the folders of sockets are made: in $XDG_RUNTIME_DIR where there is one, else with the temporary files. */
export function socketParent(environment: NodeJS.ProcessEnv): string {
  const runtime = environment.XDG_RUNTIME_DIR;
  return runtime !== undefined && isFolder(runtime) ? runtime : (environment.TMPDIR ?? tmpdir());
}

/**
 * Makes a 0700 folder for the socket of a run.
 *
 * @throws BatonError SOCKET_PATH_TOO_LONG when the path does not fit into a socket address, SOCKET_FOLDER_UNUSABLE when
 * the folder cannot be made
 */
export function makeSocketFolder(run: string, environment: NodeJS.ProcessEnv): SocketFolder {
  const socketPath = join(socketParent(environment), ownedName(run), "socket");
  const failure = checkSocketPath(socketPath);
  if (failure !== null) throw new BatonError(failure);
  const path = dirname(socketPath);
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    throw new BatonError(
      {
        code: "SOCKET_FOLDER_UNUSABLE",
        message: `No folder for the run's socket can be made in ${dirname(path)}.`,
        expected: "a folder that this user can write, from XDG_RUNTIME_DIR or else TMPDIR",
        found: (error as Error).message,
        action: "Set TMPDIR (or XDG_RUNTIME_DIR) to such a folder.",
      },
      { cause: error },
    );
  }
  return { path, socketPath, remove: () => rmSync(path, { recursive: true, force: true }) };
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}
