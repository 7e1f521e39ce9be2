/** Whether a run ended as its scenario says it must. */
import type { Process } from "./processes.js";
import { Violation } from "./properties.js";
import type { Scenario } from "./scenario.js";
import type { EndCommand, World } from "./world.js";

const CODES: Readonly<Record<string, readonly string[]>> = {
  wrongSeq: ["UNEXPECTED_MESSAGE"],
  secondArrive: ["UNEXPECTED_MESSAGE"],
  wrongEpochArrived: ["RANKS_DISAGREE"],
  olderEpochArrived: ["RANKS_DISAGREE", "STALE_EPOCH"],
  wrongCall: ["RANKS_DISAGREE"],
  extraCall: ["RANKS_DISAGREE"],
  missingCall: ["RANKS_DISAGREE"],
  earlyGoodbye: ["RANKS_DISAGREE"],
  otherManifest: ["MANIFESTS_DIFFER"],
  staleGenerated: ["STALE_EPOCH"],
  staleSynced: ["STALE_EPOCH"],
  compareDiffers: ["WEIGHTS_DIFFER"],
  checksumDiffers: ["WEIGHT_CHECKSUM_MISMATCH"],
  logprobTooFar: ["LOGPROB_MISMATCH"],
  wrongGpu: ["TOPOLOGY_MISMATCH"],
  // One rank alone that counts two: it is believed, and the second never comes.
  wrongWorldSize: ["TOPOLOGY_MISMATCH", "RANKS_NOT_DIVISIBLE", "TOO_FEW_GPUS", "DEADLINE"],
  die: ["RANK_DIED", "ENGINE_DIED", "WORKER_DIED"],
  hang: ["DEADLINE"],
  disconnect: ["CONNECTION_LOST"],
  fail: ["TEST_FAILURE"],
  interrupt: ["INTERRUPTED"],
  // The last two: the moment of grace for a goodbye that is on its way passes too early.
  deadline: ["DEADLINE", "ROOM_NOT_AVAILABLE", "RANK_DIED", "RANK_LEFT", "RANKS_UNFINISHED"],
  unasked: ["UNEXPECTED_MESSAGE", "DUPLICATE_CLIENT", "TOPOLOGY_MISMATCH", "RANKS_NOT_DIVISIBLE", "STALE_EPOCH"],
};

/** Faults that a run may outlive: the client was past its work, or the spoilt message had no consequence. */
const SURVIVABLE = new Set(["die", "hang", "disconnect", "fail", "unasked", "otherManifest", "launcherExit"]);

/** Whether everything fits: all but the weights beside the parameters is given by the scenario's shape. */
function fits(scenario: Scenario): boolean {
  return scenario.parameterBytes + scenario.weightBytes <= scenario.gpuBytes;
}

export function judge(world: World, end: EndCommand): void {
  const { scenario } = world;
  const { fault } = scenario;
  const code = end.failure?.code ?? null;
  const say = (expected: string): never => {
    throw new Violation(`${expected} expected, found ${code ?? "a good end"}: ${end.failure?.message}`);
  };
  if ((end.failure === null) !== (end.reason === "finished")) say("a failure exactly when not finished");
  if ((end.exitCode === 0) !== (end.reason === "finished")) say("exit code 0 exactly when finished");

  const roomless = scenario.rollouts.length > 0 && (!fits(scenario) || fault.kind === "unknownMemory");
  if (roomless && code === "ROOM_NOT_AVAILABLE") {
    if (end.gpus.length === 0) say("the GPUs without room");
    return;
  }
  if (world.struck === null) {
    if (roomless) say("ROOM_NOT_AVAILABLE");
    if (end.reason !== "finished") say("a good end");
    return;
  }
  if (end.reason === "finished") {
    if (!SURVIVABLE.has(fault.kind)) say(CODES[fault.kind]?.join(" or ") ?? "a failure");
    return;
  }
  if (fault.kind === "launcherExit") {
    const expected = fault.code === 0 ? ["RANKS_UNFINISHED", "NO_RANKS"] : ["LAUNCHER_FAILED"];
    if (!expected.includes(code ?? "")) say(expected.join(" or "));
    if (fault.code !== 0 && end.exitCode !== fault.code) say(`exit code ${fault.code}`);
    return;
  }
  if (fault.kind === "die" && code === "LAUNCHER_FAILED" && !(world.struck as Process).saidHello) return;
  if (!CODES[fault.kind]?.includes(code ?? "")) say(CODES[fault.kind]?.join(" or ") ?? "no failure");
  const struck = world.struck;
  const named = struck === "node" || end.failure?.message.includes(struck.name);
  // Before the first rank connects nobody knows how many there are; after the last goodbye only the command is awaited.
  const onItsWayOut =
    fault.kind === "hang" && /^(any rank of the command|the command) did not/.test(end.failure?.message ?? "");
  if (["die", "hang", "disconnect", "fail"].includes(fault.kind) && !named && !onItsWayOut) {
    say(`an error that names ${(struck as Process).name}`);
  }
  if (fault.kind === "interrupt" && end.exitCode !== 130) say("exit code 130");
}
