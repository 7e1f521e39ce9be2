/** Starts the engines and the command of a run. */
import { guardPath, libbatonPath, processInfo, pythonPath } from "../native.js";
import type { PhaseConfig } from "../phases/config.js";
import { type Child, type ChildOptions, startChild } from "./children.js";
import { engineCommand, engineEnvironment } from "./engines.js";
import { childEnvironment } from "./environment.js";
import type { SocketFolder } from "./folders.js";
import type { BatonNode } from "./node.js";
import { recordPath } from "./ownership.js";
import type { Recorder } from "./recorder.js";
import type { RunPlan } from "./run.js";
import type { Standin } from "./standin.js";

/**
 * Shared memory that DeepSpeed's processes leave when they are killed, tens of MiB a run: only an orderly end removes
 * it (https://github.com/deepspeedai/DeepSpeed, csrc/cpu/comm/shm.cpp). Its names say nothing of the run.
 */
const OF_DEEPSPEED = "/dev/shm/deepspeed_";

export interface LaunchOptions {
  readonly plan: RunPlan;
  readonly config: PhaseConfig;
  readonly node: BatonNode;
  readonly recorder: Recorder;
  /** Gets each child as soon as it runs. */
  readonly children: Child[];
  /** Path of a log of this name. */
  readonly logFile: (name: string) => string;
  readonly socket: SocketFolder;
  readonly token: string;
  readonly standin: Standin | null;
  readonly stoppedDeadlineMs: number;
}

/**
 * Starts every engine, then the command, each under a guard; their ends are fed to the node.
 *
 * @throws BatonError CHILD_NOT_STARTED; those that were started are in `children`
 */
export async function launch(options: LaunchOptions): Promise<void> {
  const { plan, config, node, recorder, children } = options;
  const controller = { pid: process.pid, startTime: processInfo(process.pid)?.startTime ?? 0n };
  const environment = childEnvironment({
    inherited: plan.environment,
    socketPath: options.socket.socketPath,
    token: options.token,
    controller,
    libraryPath: libbatonPath(),
    pythonSource: pythonPath(),
    python: plan.python,
    standin: options.standin?.environment ?? null,
    startMs: config.deadlines.startMs,
  });
  const start = async (
    child: Pick<ChildOptions, "name" | "command" | "environment" | "logPath" | "sharedMemory">,
  ): Promise<Child> => {
    const started = await startChild({
      ...child,
      guardPath: guardPath(),
      controller,
      stoppedDeadlineMs: options.stoppedDeadlineMs,
      remove: [options.socket.path, ...(options.standin?.files ?? [])],
    });
    children.push(started);
    return started;
  };

  for (let engine = 0; engine < config.engines; engine++) {
    const child = await start({
      name: `engine ${engine}`,
      command: engineCommand(plan.python),
      environment: {
        ...environment,
        BATON_ENGINE: engineEnvironment(plan.recipe, config, engine),
        BATON_STANDIN_ROLE: "engine",
      },
      logPath: options.logFile(`engine-${engine}.log`),
      sharedMemory: null,
    });
    void child.ended.then((exit) => {
      // An engine that never connected is known by its guard only; the others by their own process.
      const client = { role: "engine", index: engine } as const;
      if (node.server.find(client) === undefined) node.feed({ type: "processDied", client, exit });
    });
  }
  const launcher = await start({
    name: "launcher",
    command: plan.command,
    environment: { ...environment, BATON_STANDIN_ROLE: "rank" },
    logPath: plan.logCommand ? options.logFile("launcher.log") : null,
    sharedMemory: { prefix: OF_DEEPSPEED, record: recordPath(options.socket.path) },
  });
  recorder.spawned("launcher", launcher.pid);
  void launcher.ended.then((exit) => {
    recorder.exited("launcher", launcher.pid, exit);
    node.feed({ type: "launcherExited", exit });
  });
}
