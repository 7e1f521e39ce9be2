/** What the processes of a run find in their environment. */
import { delimiter, dirname } from "node:path";

export interface EnvironmentOptions {
  readonly inherited: NodeJS.ProcessEnv;
  readonly socketPath: string;
  readonly token: string;
  readonly controller: { readonly pid: number; readonly startTime: bigint };
  readonly libraryPath: string;
  /** Folder of the Python package. */
  readonly pythonSource: string;
  /** The interpreter of the engines: its programs (accelerate, torchrun) are found when PATH has none. */
  readonly python: string;
  /** Of the stand-in GPUs; null on real ones. */
  readonly standin: Readonly<Record<string, string>> | null;
  /** How long a client may wait for its welcome. */
  readonly startMs: number;
}

/** The environment of the command and of the engines. */
export function childEnvironment(options: EnvironmentOptions): NodeJS.ProcessEnv {
  const { inherited, standin } = options;
  const programs = dirname(options.python);
  return {
    ...inherited,
    ...standin,
    BATON_SOCKET: options.socketPath,
    BATON_TOKEN: options.token,
    BATON_CONTROLLER_PID: String(options.controller.pid),
    BATON_CONTROLLER_START: String(options.controller.startTime),
    BATON_LIBRARY: options.libraryPath,
    // The controller itself ends a start that takes too long; its clients only must not be faster.
    BATON_START_SECONDS: String(options.startMs / 1000 + 5),
    PYTHONPATH: joined(options.pythonSource, inherited.PYTHONPATH),
    PATH: joined(inherited.PATH, programs),
    // A line of a log is there when it was written, also of a process that was killed.
    PYTHONUNBUFFERED: inherited.PYTHONUNBUFFERED ?? "1",
  };
}

function joined(...paths: readonly (string | undefined)[]): string {
  return paths.filter((path) => path !== undefined && path !== "").join(delimiter);
}
