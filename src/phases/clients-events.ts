/** Events of the life of clients: they come, they go, they break. */
import type { Failure } from "../protocol/messages.js";
import { type Client, clientName } from "./clients.js";
import { firstGpu } from "./config.js";
import type { Event, ProcessExit } from "./events.js";
import {
  connectionLost,
  died,
  gpusOfFailure,
  launcherFailed,
  ranksDisagree,
  topologyMismatch,
  unexpected,
} from "./failures.js";
import { newRank } from "./state.js";
import type { Step } from "./step.js";
import { checkTopology } from "./topology.js";
import { asClient } from "./waits.js";

type EventOf<T extends Event["type"]> = Extract<Event, { type: T }>;

export function onHello(step: Step, event: EventOf<"hello">): void {
  const { client } = event;
  if (client.role === "rank") {
    learnRanks(step, client, event.localWorldSize);
    if (event.gpu !== client.index) {
      step.fail(topologyMismatch(client, `GPU ${client.index}, its LOCAL_RANK`, `GPU ${event.gpu}`));
    }
  }
  if (client.role === "worker") {
    const gpu = firstGpu(step.state.config, client.engine) + client.index;
    if (event.gpu !== gpu) step.fail(topologyMismatch(client, `GPU ${gpu}`, `GPU ${event.gpu}`));
  }
  const living = step.living(client);
  if (living === undefined) {
    const { engines, tensorParallel } = step.state.config;
    step.fail(
      topologyMismatch(
        client,
        `${step.state.ranks.length} ranks, ${engines} engines with ${tensorParallel} workers each`,
        clientName(client),
      ),
    );
  }
  if (living.life.connected) {
    step.fail({
      code: "DUPLICATE_CLIENT",
      message: `two processes say that they are ${clientName(client)}`,
      expected: "one process for each rank, engine and worker",
      found: `a second hello of ${clientName(client)}`,
      action: "Give every process its own LOCAL_RANK, as torchrun and accelerate do.",
    });
  }
  living.life = { ...living.life, connected: true };
  if (client.role === "rank") {
    const rank = step.rank(client.index, "hello");
    rank.phase = "connected";
    return;
  }
  if (client.role === "engine") step.engine(client.index, "hello").stage = "connected";
  step.command({ type: "welcome", client });
}

/** The first rank says how many there are; the others must say the same. */
function learnRanks(step: Step, client: Client, localWorldSize: number | null): void {
  const known = step.state.ranks.length;
  if (known === 0) {
    const ranks = localWorldSize ?? 0;
    const { gpus, engines, tensorParallel } = step.state.config;
    if (ranks < 1) step.fail(topologyMismatch(client, "LOCAL_WORLD_SIZE of at least 1", `${localWorldSize}`));
    const failure = checkTopology({ gpus, ranks, engines, tensorParallel });
    if (failure) step.fail(failure);
    step.state.ranks = Array.from({ length: ranks }, (_, index) => newRank(index));
  } else if (localWorldSize !== known) {
    step.fail(topologyMismatch(client, `${known} ranks on this node`, `${localWorldSize}`));
  }
}

export function onReady(step: Step, event: EventOf<"ready">): void {
  const engine = step.engine(event.engine, "ready");
  const client: Client = { role: "engine", index: engine.index };
  step.expect(client, "ready", engine.ready ? "ready" : engine.stage, ["connected"]);
  const { tensorParallel } = step.state.config;
  if (event.tensorParallel !== tensorParallel) {
    step.fail(topologyMismatch(client, `tensorParallel ${tensorParallel}`, `${event.tensorParallel}`));
  }
  engine.ready = true;
  engine.weightBytes = event.weightBytes;
  engine.cacheBytes = event.cacheBytes;
}

export function onGoodbye(step: Step, event: EventOf<"goodbye">): void {
  const { client } = event;
  if (client.role !== "rank") {
    step.fail(unexpected(client, "goodbye", "an engine that stays until the run is over", "goodbye"));
  }
  const rank = step.rank(client.index, "goodbye");
  const waiting = step.state.ranks.filter((other) => other.phase === "arrived");
  if (rank.phase === "train" && waiting.length > 0) {
    step.fail(
      ranksDisagree(
        `rank ${rank.index} is finished while others are at the handoff`,
        "all ranks at the handoff, or all finished",
        `rank ${waiting[0]?.index} arrived, rank ${rank.index} said goodbye`,
      ),
    );
  }
  step.expect(client, "goodbye", rank.phase, ["train"]);
  rank.phase = "finished";
}

export function onFailed(step: Step, client: Client, failure: Failure): void {
  const gpus = gpusOfFailure(step.state.config, client, failure);
  step.fail({ ...failure, message: `${clientName(client)}: ${failure.message}` }, gpus);
}

export function onProcessDied(step: Step, event: EventOf<"processDied">): void {
  const living = step.living(event.client);
  if (living === undefined || isFinished(step, event.client)) return;
  const { connected, lost } = living.life;
  living.life = { ...living.life, died: event.exit };
  // Frames that it sent before (a goodbye, or why it fails) may still be unread: the end of its connection,
  // which comes after them, is awaited for a moment.
  if (!connected || lost) failByDeath(step, event.client, event.exit);
}

export function onConnectionLost(step: Step, event: EventOf<"connectionLost">): void {
  const living = step.living(event.client);
  if (!living?.life.connected || isFinished(step, event.client)) return;
  const exit = living.life.died;
  living.life = { connected: true, lost: true, ending: event.ending, died: exit };
  if (exit) failByDeath(step, event.client, exit);
}

/** The moment of grace after a death or a lost connection is over. */
export function onGone(step: Step, client: Client): void {
  const life = step.living(client)?.life;
  // The kernel may take a second to give back what a process had on a GPU; only then the pidfd tells how it ended.
  const exit = life?.died ?? (life?.ending ? { code: null, signal: null } : null);
  if (exit) failByDeath(step, client, exit);
  step.fail(connectionLost(client));
}

function failByDeath(step: Step, client: Client, exit: ProcessExit): never {
  return step.fail(died(client, exit, step.state.phase, step.isAway(client)));
}

function isFinished(step: Step, client: Client): boolean {
  return client.role === "rank" && step.state.ranks[client.index]?.phase === "finished";
}

/** The command ended and its ranks had a moment to be heard. */
export function onLauncherGone(step: Step): void {
  const { launcher, ranks } = step.state;
  if (launcher === null) return;
  if (launcher.code !== 0) step.fail(launcherFailed(launcher));
  const connected = ranks.filter((rank) => rank.life.connected);
  if (connected.length === 0) {
    step.fail({
      code: "NO_RANKS",
      message: "the command ended before any rank connected",
      expected: "ranks that open `baton.training_memory()` or call `baton.attach`",
      found: "none",
      action: "Use Baton in the training script, and start it by a launcher such as accelerate or torchrun.",
    });
  }
  const late = ranks.filter((rank) => rank.phase !== "finished");
  step.fail({
    code: "RANKS_UNFINISHED",
    message: `the command ended, but ${late.map((rank) => clientName(asClient(rank))).join(", ")} did not say goodbye`,
    expected: "every rank to end its session",
    found: `an end in phase ${step.state.phase}`,
    action: "Let every rank leave the script in good order.",
  });
}
