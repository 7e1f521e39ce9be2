/** What follows from the state alone: each rule does the next thing that is possible, until nothing is. */
import { ranksDisagree } from "./failures.js";
import { advanceRollout } from "./generation.js";
import { advanceEngineRoom, advanceRankRoom, release, resume } from "./room.js";
import type { EngineState, RankState } from "./state.js";
import type { Step } from "./step.js";
import { asClient } from "./waits.js";

/** Does all that has become possible by the event. Rules come in the order in which they enable each other. */
export function advance(step: Step): void {
  const { state } = step;
  for (const engine of state.engines) finishStart(engine);
  welcomeRanks(step);
  beginHandoff(step);
  if (!state.inHandoff) return;
  advanceHandoff(step);
  if (state.inHandoff) return;
  // Ranks that were quicker than an engine's sleep may all have arrived for the next one already.
  beginHandoff(step);
  advanceHandoff(step);
}

function advanceHandoff(step: Step): void {
  const { state } = step;
  if (!state.inHandoff) return;
  for (const rank of state.ranks) advanceRelease(step, rank);
  for (const engine of state.engines) advanceWeights(step, engine);
  exportSegments(step);
  for (const engine of state.engines) advanceSync(step, engine);
  noteEpoch(step);
  for (const rank of state.ranks) advanceReleaseAll(step, rank);
  for (const engine of state.engines) advanceCache(step, engine);
  for (const engine of state.engines) advanceRollout(step, engine);
  for (const rank of state.ranks) advanceResume(step, rank);
  endHandoff(step);
}

/** An engine is where it can be woken when it said that it is ready and its workers are there. */
function finishStart(engine: EngineState): void {
  if (engine.stage === "connected" && engine.ready && engine.workers.every((worker) => worker.life.connected)) {
    engine.stage = "asleep";
  }
}

/** Ranks may use their GPUs when no engine is starting on them any more: starting takes all its memory. */
function welcomeRanks(step: Step): void {
  if (step.state.phase !== "start") return;
  if (step.state.engines.some((engine) => engine.stage !== "asleep")) return;
  for (const rank of step.state.ranks) {
    if (rank.phase !== "connected") continue;
    rank.phase = "attaching";
    step.command({ type: "welcome", client: asClient(rank) });
  }
}

/** The handoff begins when all ranks are there with everything that they own, and no engine is awake. */
function beginHandoff(step: Step): void {
  const { state } = step;
  if (state.inHandoff || state.ranks.length === 0) return;
  if (!state.ranks.every((rank) => rank.phase === "arrived" && rank.returned)) return;
  const first = state.ranks[0] as RankState;
  const other = state.ranks.find((rank) => rank.manifest !== first.manifest);
  if (other) {
    step.fail({
      ...ranksDisagree(
        "the ranks do not train the same model",
        "the same tensors, in the same order, on every rank",
        `ranks ${first.index} and ${other.index} have different manifests`,
      ),
      code: "MANIFESTS_DIFFER",
    });
  }
  state.inHandoff = true;
  state.handoff += 1;
  state.epoch = first.epoch;
  if (state.manifestsChanged) for (const engine of state.engines) engine.planned = false;
  state.manifestsChanged = false;
  const { weights } = state.config.checks;
  // An engine without a plan is about to have its first sync.
  const isFirst = state.engines.some((engine) => !engine.planned || engine.syncs === 0);
  state.checksums = weights === "every" || (weights === "first" && isFirst);
  for (const engine of state.engines) engine.done = false;
  for (const rank of state.ranks) {
    rank.inHandoff = true;
    rank.exported = false;
    rank.releasedBytes = 0;
    rank.left = false;
    rank.calls = 0;
  }
}

function advanceRelease(step: Step, rank: RankState): void {
  if (rank.phase !== "arrived" || !rank.inHandoff) return;
  if (step.state.config.release === "all") {
    release(step, rank, "optimizer", null);
  } else if (step.engineBeside(rank) === null) {
    rank.phase = "released"; // nothing on its GPU needs room
  }
}

function advanceWeights(step: Step, engine: EngineState): void {
  if (engine.stage === "asleep" && !engine.done) {
    const mayMeasure =
      step.state.config.release === "needed" ||
      step.ranksBeside(engine).every((rank) => rank.phase !== "arrived" && rank.phase !== "releasing");
    if (!mayMeasure) return;
    engine.stage = "roomForWeights";
    engine.room = step.newRoomWait();
  }
  if (engine.stage === "roomForWeights") advanceEngineRoom(step, engine);
  if (engine.stage === "weightsAwake") {
    if (engine.planned) {
      engine.stage = "planned";
    } else {
      makePlan(step, engine);
    }
  }
}

function makePlan(step: Step, engine: EngineState): void {
  engine.seq = step.seq();
  engine.stage = "planning";
  for (const worker of engine.workers) {
    worker.answered = false;
    step.command({ type: "sendManifests", engine: engine.index, worker: worker.index, seq: engine.seq });
  }
  step.send({ role: "engine", index: engine.index }, { type: "plan", seq: engine.seq });
}

/** Which segments a rank must export is known when all plans are. */
function exportSegments(step: Step): void {
  const { state } = step;
  if (!state.engines.every((engine) => engine.planned)) return;
  for (const rank of state.ranks) {
    if (rank.phase !== "released") continue;
    rank.seq = step.seq();
    rank.phase = "exporting";
    step.command({ type: "exportSegments", rank: rank.index, seq: rank.seq, checksums: state.checksums });
  }
}

function advanceSync(step: Step, engine: EngineState): void {
  const { state } = step;
  if (engine.stage === "planned" && state.ranks.every((rank) => rank.phase === "exported" || !isSource(engine, rank))) {
    engine.seq = step.seq();
    engine.stage = "syncing";
    engine.compare = state.config.checks.compareFirst && engine.syncs === 0;
    engine.proof = state.checksums ? "sums" : null;
    engine.sumsSeq = engine.seq;
    for (const worker of engine.workers) {
      worker.answered = false;
      worker.summed = false;
      step.command({
        type: "sendSources",
        engine: engine.index,
        worker: worker.index,
        seq: engine.seq,
        epoch: state.epoch,
        compare: engine.compare,
        checksums: state.checksums,
      });
    }
    step.send(
      { role: "engine", index: engine.index },
      { type: "sync", seq: engine.seq, epoch: state.epoch, compare: engine.compare },
    );
  }
  // The sums of all ranks are needed: of their own pieces, or to see that replicas are equal.
  const summed = engine.proof === "sums" && engine.workers.every((worker) => worker.summed);
  if (summed && state.ranks.every((rank) => rank.exported)) {
    engine.proof = "verdict";
    step.command({ type: "verifyWeights", engine: engine.index, epoch: state.epoch });
  }
}

const isSource = (engine: EngineState, rank: RankState): boolean =>
  engine.workers.some((worker) => worker.sources.includes(rank.index));

/** Stages in which an engine has its weights of this handoff and no longer reads those of the ranks. */
const HAS_WEIGHTS: ReadonlySet<EngineState["stage"]> = new Set([
  "synced",
  "roomForCache",
  "wakingCache",
  "verifying",
  "open",
  "generating",
  "sleeping",
]);

const hasWeights = (engine: EngineState): boolean =>
  HAS_WEIGHTS.has(engine.stage) || (engine.stage === "asleep" && engine.done);

function noteEpoch(step: Step): void {
  const { state } = step;
  if (state.weightEpoch === state.epoch) return;
  if (!state.engines.every((engine) => hasWeights(engine) && engine.proof === null)) return;
  state.weightEpoch = state.epoch;
  step.command({ type: "epochMoved", epoch: state.epoch });
}

/** A rank keeps its parameters until every engine that maps them has taken them. */
function mayReleaseAll(step: Step, rank: RankState): boolean {
  return (
    rank.phase === "exported" && step.state.engines.every((engine) => hasWeights(engine) || !isSource(engine, rank))
  );
}

function advanceReleaseAll(step: Step, rank: RankState): void {
  if (!mayReleaseAll(step, rank)) return;
  if (step.state.config.release === "all") {
    release(step, rank, "all", null);
  } else if (step.engineBeside(rank) === null) {
    rank.phase = "closed"; // nothing on its GPU needs room
  }
}

/** A rank of another engine's group may even have left its rollout before the engine on its GPU is awake. */
const GAVE_ALL: ReadonlySet<RankState["phase"]> = new Set(["closed", "open", "left"]);

function advanceCache(step: Step, engine: EngineState): void {
  if (engine.stage === "synced") {
    const beside = step.ranksBeside(engine);
    const mayMeasure = beside.every((rank) =>
      step.state.config.release === "needed" ? mayReleaseAll(step, rank) : GAVE_ALL.has(rank.phase),
    );
    if (!mayMeasure) return;
    engine.stage = "roomForCache";
    engine.room = step.newRoomWait();
  }
  if (engine.stage === "roomForCache") advanceEngineRoom(step, engine);
}

/** A rank may map memory when the engine on its GPU is asleep and there is room for all that it gave back. */
function advanceResume(step: Step, rank: RankState): void {
  if (rank.phase !== "left") return;
  const beside = step.engineBeside(rank);
  if (beside && !(beside.stage === "asleep" && beside.done)) return;
  if (rank.releasedBytes === 0) {
    resume(step, rank);
    return;
  }
  rank.room ??= step.newRoomWait();
  advanceRankRoom(step, rank);
}

function endHandoff(step: Step): void {
  const { state } = step;
  if (state.ranks.some((rank) => rank.inHandoff)) return;
  if (state.engines.some((engine) => engine.stage !== "asleep" || !engine.done)) return;
  state.inHandoff = false;
}
