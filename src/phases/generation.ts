/** Requests to an open engine, and its way to sleep. */
import type { EngineState } from "./state.js";
import type { Step } from "./step.js";
import { asClient, groupOf } from "./waits.js";

/** Lets the ranks of an open engine in, gives it the call that all of them have made, or sends it to sleep. */
export function advanceRollout(step: Step, engine: EngineState): void {
  if (engine.stage !== "open" || engine.epoch === null) return;
  const group = groupOf(step.state, engine.index);
  for (const rank of group) {
    if (rank.phase !== "closed") continue;
    rank.phase = "open";
    step.send(asClient(rank), { type: "opened", epoch: engine.epoch });
  }
  if (group.every((rank) => rank.prompted)) {
    request(step, engine);
  } else if (group.every((rank) => rank.left)) {
    engine.seq = step.seq();
    engine.stage = "sleeping";
    step.send({ role: "engine", index: engine.index }, { type: "sleep", seq: engine.seq, level: 2 });
  }
}

function request(step: Step, engine: EngineState): void {
  const group = groupOf(step.state, engine.index);
  const epoch = engine.epoch ?? -1;
  if (group.every((rank) => rank.prompts === 0)) {
    answerGroup(step, engine, null);
    return;
  }
  engine.stage = "generating";
  engine.request = step.state.nextRequest++;
  engine.finishedSamples = 0;
  engine.generatedTokens = 0;
  engine.progress += 1;
  step.command({
    type: "generate",
    engine: engine.index,
    ranks: group.map((rank) => rank.index),
    call: (group[0]?.calls ?? 1) - 1,
    request: engine.request,
    epoch,
  });
}

/** Gives the ranks of the group their completions; request null: there was nothing to generate. */
export function answerGroup(step: Step, engine: EngineState, request: number | null): void {
  const group = groupOf(step.state, engine.index);
  step.command({
    type: "completions",
    engine: engine.index,
    ranks: group.map((rank) => rank.index),
    call: (group[0]?.calls ?? 1) - 1,
    request,
    epoch: engine.epoch ?? -1,
  });
  for (const rank of group) rank.prompted = false;
}
