/** The errors of the state machine, in the words that the user reads. */
import type { Failure } from "../protocol/messages.js";
import { type Client, clientName } from "./clients.js";
import type { NodePhase } from "./commands.js";
import { engineGpus, firstGpu, type PhaseConfig } from "./config.js";
import type { ProcessExit } from "./events.js";
import type { Wait } from "./waits.js";

/** Ends the transition it is thrown in, and the run. Never leaves `transition`. */
export class Trouble extends Error {
  constructor(
    readonly failure: Failure,
    /** GPUs whose holders belong into the error. */
    readonly gpus: readonly number[] = [],
  ) {
    super(failure.message);
  }
}

/** Codes of failures that are about the memory of a GPU: who holds it belongs into the error. */
const ABOUT_MEMORY: ReadonlySet<string> = new Set(["OUT_OF_MEMORY", "CUDA_OUT_OF_MEMORY", "OUT_OF_ADDRESS_SPACE"]);

/** GPUs whose holders belong into a failure that a client reported: its own, when it ran out of memory. */
export function gpusOfFailure(config: PhaseConfig, client: Client | null, { code }: Failure): number[] {
  if (client === null || !ABOUT_MEMORY.has(code)) return [];
  if (client.role === "rank") return [client.index];
  if (client.role === "engine") return engineGpus(config, client.index);
  return [firstGpu(config, client.engine) + client.index];
}

/** "rank 1, rank 3 and engine 0"; `nobody` when there is none. */
export function clientList(clients: readonly Client[], nobody: string): string {
  const names = clients.map(clientName);
  if (names.length <= 1) return names[0] ?? nobody;
  const shown = names.length > 10 ? [...names.slice(0, 9), `${names.length - 9} others`] : names;
  return `${shown.slice(0, -1).join(", ")} and ${shown.at(-1)}`;
}

export function describeExit(exit: ProcessExit): string {
  if (exit.signal !== null) return `killed by ${exit.signal}`;
  return exit.code === null ? "gone, how is not known" : `exited with code ${exit.code}`;
}

export function unexpected(client: Client, message: string, expected: string, found: string): Failure {
  return {
    code: "UNEXPECTED_MESSAGE",
    message: `${clientName(client)} sent \`${message}\` out of order`,
    expected,
    found,
    action: "Use the same version of Baton in every process; if it is the same, this is a bug worth reporting.",
  };
}

const TOLD_TO_END =
  "Look for who sent SIGTERM: a scheduler or a container at the end of its time, or somebody's kill. Without them, read " +
  "the output of the command.";
const KILLED = "Look for the out-of-memory killer in the kernel log; otherwise somebody killed it.";

/** Signals of a process that touched memory which is not there. */
const BAD_ACCESS: ReadonlySet<string> = new Set(["SIGSEGV", "SIGBUS"]);

/**
 * @param phase of the node: the one that events, progress and summary show
 * @param away the process is a rank that had given back training state for a rollout
 */
export function died(client: Client, exit: ProcessExit, phase: NodePhase, away = false): Failure {
  if (client.role === "rank" && exit.code === 0) return left(client, phase);
  const touched = away && BAD_ACCESS.has(exit.signal ?? "");
  return {
    code: `${client.role.toUpperCase()}_DIED`,
    message: `${clientName(client)} died in phase ${phase}`,
    expected: "a process that lives until the run is over",
    found: describeExit(exit) + (touched ? ", while its training state was away for the rollout" : ""),
    action: touched
      ? "Training state (parameters, gradients, optimizer) is away inside of `with session.rollout()`, and reading it " +
        "there ends the process: copy the tensors that the block needs before it, with .clone() outside of " +
        "the training memory. The output of this process has the line of the script."
      : actionAfter(exit, "Read the output of this process."),
  };
}

function actionAfter({ signal }: ProcessExit, otherwise: string): string {
  if (signal === "SIGKILL") return KILLED;
  return signal === "SIGTERM" ? TOLD_TO_END : otherwise;
}

/** The command that starts the ranks ended otherwise than with code 0. */
export function launcherFailed({ code, signal }: ProcessExit): Failure {
  const failure = { code: "LAUNCHER_FAILED", expected: "exit code 0" };
  if (signal === null) {
    return {
      ...failure,
      message: "the command ended with an error",
      found: `exit code ${code}`,
      action: "Read the output of the command.",
    };
  }
  return {
    ...failure,
    message: "the command that starts the ranks was killed, and its ranks with it",
    found: `killed by ${signal}`,
    action: actionAfter({ code, signal }, "Read the output of the command."),
  };
}

/** The launcher lived when all of its ranks ended at the same time. */
export function launcherEndedRanks(ranks: number): Failure {
  return {
    code: "LAUNCHER_FAILED",
    message: "the command that starts the ranks has ended them all at once, as on SIGTERM",
    expected: "a command that lives until its ranks are done",
    found: `${ranks} ranks that ended together while their launcher lived`,
    action: TOLD_TO_END,
  };
}

/** A rank that ended without an error, and not by its interpreter's usual way out, which would have told us. */
function left(client: Client, phase: NodePhase): Failure {
  return {
    code: "RANK_LEFT",
    message: `${clientName(client)} ended in phase ${phase}, so the run has not reached its end`,
    expected: "session.finish() at the end of the script, on every rank",
    found: "exit code 0 without it",
    action: "Call session.finish(), and look for an os._exit() that comes before it.",
  };
}

export function connectionLost(client: Client): Failure {
  return {
    code: "CONNECTION_LOST",
    message: `${clientName(client)} closed its connection, but its process is alive`,
    expected: "a connection until the run is over",
    found: "end of stream",
    action: "Read the output of this process; an exception may have ended its Baton session.",
  };
}

export function deadlinePassed(wait: Wait): Failure {
  const nobody = wait.key.startsWith("verify: ") ? "the controller" : "the command";
  const who = clientList(wait.clients, wait.key === "start" ? "any rank of the command" : nobody);
  const doing = `Look at what ${who} ${wait.clients.length > 1 ? "are" : "is"} doing`;
  return {
    code: "DEADLINE",
    message: `${who} did not ${wait.what} within ${wait.ms} ms`,
    expected: `an answer within ${wait.ms} ms${wait.setting ? ` (deadlines.${wait.setting})` : ""}`,
    found: `nothing from ${who}`,
    action: wait.setting
      ? `${doing} (stopped, or waiting for another process?), or raise deadlines.${wait.setting}.`
      : `${doing}.`,
  };
}

export function interrupted(signal: string): Failure {
  return {
    code: "INTERRUPTED",
    message: `the run was interrupted (${signal})`,
    expected: "a run that ends by itself",
    found: signal,
    action: "Start it again; training goes on from the script's own last checkpoint, if it wrote one.",
  };
}

export function ranksDisagree(message: string, expected: string, found: string): Failure {
  return {
    code: "RANKS_DISAGREE",
    message,
    expected,
    found,
    action: "Every rank must take the same path through the script: the same steps, rollouts and calls of generate.",
  };
}

export function staleEpoch(message: string, expected: number, found: number): Failure {
  return {
    code: "STALE_EPOCH",
    message,
    expected: `epoch ${expected}`,
    found: `epoch ${found}`,
    action: "The weights in use are not those of the last optimizer step; the run's events show which sync was missed.",
  };
}

export function topologyMismatch(client: Client, expected: string, found: string): Failure {
  return {
    code: "TOPOLOGY_MISMATCH",
    message: `${clientName(client)} has another idea of the node than the recipe`,
    expected,
    found,
    action: "Make the command's number of processes and the recipe's engines and GPUs agree.",
  };
}
