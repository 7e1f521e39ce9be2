/** What ranks say: training, giving memory back, generating, taking it back. */
import type { Event } from "./events.js";
import { ranksDisagree, staleEpoch, Trouble } from "./failures.js";
import type { RankState } from "./state.js";
import type { Step } from "./step.js";
import { asClient, groupOf } from "./waits.js";

type EventOf<T extends Event["type"]> = Extract<Event, { type: T }>;

export function onManifest(step: Step, event: EventOf<"manifest">): void {
  const rank = step.rank(event.rank, "manifest");
  step.expect(asClient(rank), "manifest", rank.phase, ["attaching", "train"]);
  const { checks, engineDtype } = step.state.config;
  // The other way round works: a float32 trainer's parameters are rounded on their way.
  if (checks.needsFloat32 && engineDtype === "float32" && event.dtype !== "float32") {
    step.fail({
      code: "DTYPE_MISMATCH",
      message: `the engines compute in float32, and rank ${rank.index} trains in a type that rounds more`,
      expected: `parameters in float32, or engines in ${event.dtype}`,
      found: `parameters in ${event.dtype}, engine.dtype float32, bounds of logprobs ${checks.logprobMaxBound ?? "none"}, mean ${checks.logprobMeanBound ?? "none"}`,
      action: `Set engine.dtype to ${event.dtype}, or train in float32. If it is meant, raise checks.logprobMaxBound and logprobMeanBound.`,
    });
  }
  rank.phase = "train";
  rank.manifest = event.signature;
  rank.dtype = event.dtype;
  rank.scratchBytes = event.scratchBytes;
  // Names or addresses may have changed, and every plan is made of all manifests. A rank may be so quick that
  // the handoff it comes from still goes on elsewhere: that one keeps its plans.
  step.state.manifestsChanged = true;
}

export function onArrived(step: Step, event: EventOf<"arrived">): void {
  const rank = step.rank(event.rank, "arrive");
  step.expect(asClient(rank), "arrive", rank.phase, ["train"]);
  const finished = step.state.ranks.find((other) => other.phase === "finished");
  if (finished) {
    step.fail(
      ranksDisagree(
        `rank ${rank.index} is at the handoff, but rank ${finished.index} is finished`,
        "all ranks at the handoff, or all finished",
        `rank ${rank.index} arrived, rank ${finished.index} said goodbye`,
      ),
    );
  }
  const other = step.state.ranks.find((one) => one.phase === "arrived" && one.epoch !== event.epoch);
  if (other) {
    step.fail(
      ranksDisagree(
        "the ranks arrive after different optimizer steps",
        `epoch ${other.epoch}, as on rank ${other.index}`,
        `epoch ${event.epoch} on rank ${rank.index}`,
      ),
    );
  }
  if (event.epoch < step.state.epoch) {
    step.fail(staleEpoch(`rank ${rank.index} arrives with an older epoch than before`, step.state.epoch, event.epoch));
  }
  rank.phase = "arrived";
  rank.epoch = event.epoch;
}

export function onReleased(step: Step, event: EventOf<"released">): void {
  const rank = step.rank(event.rank, "released");
  step.expect(asClient(rank), "released", rank.phase, ["releasing", "releasingAll"], {
    expected: rank.seq,
    found: event.seq,
  });
  rank.releasedBytes += event.releasedBytes;
  rank.phase = rank.phase === "releasing" ? "released" : "closed";
}

export function onExported(step: Step, event: EventOf<"exported">): void {
  const rank = step.rank(event.rank, "exported");
  step.expect(asClient(rank), "exported", rank.phase, ["exporting"], { expected: rank.seq, found: event.seq });
  rank.phase = "exported";
  rank.exported = true;
}

export function onPrompts(step: Step, event: EventOf<"prompts">): void {
  const rank = step.rank(event.rank, "prompts");
  step.expect(asClient(rank), "prompts", rank.prompted ? "generate" : rank.phase, ["open"]);
  if (event.call !== rank.calls) {
    step.fail(
      ranksDisagree(
        `rank ${rank.index} counts its calls of generate differently`,
        `call ${rank.calls}`,
        `call ${event.call}`,
      ),
    );
  }
  const left = groupOf(step.state, step.engineOf(rank).index).find((other) => other.left);
  if (left) throw callsDisagree(rank, left);
  rank.calls += 1;
  rank.prompted = true;
  rank.prompts = event.count;
}

export function onLeave(step: Step, event: EventOf<"leave">): void {
  const rank = step.rank(event.rank, "leave");
  step.expect(asClient(rank), "leave", rank.prompted ? "generate" : rank.phase, ["open"]);
  const asking = groupOf(step.state, step.engineOf(rank).index).find((other) => other.prompted);
  if (asking) throw callsDisagree(asking, rank);
  rank.phase = "left";
  rank.left = true;
}

function callsDisagree(asking: RankState, left: RankState): Trouble {
  return new Trouble(
    ranksDisagree(
      "the ranks of a tensor-parallel group call generate different numbers of times",
      "the same number of calls on every rank (a call without prompts is fine)",
      `rank ${left.index} left after ${left.calls}, rank ${asking.index} makes another`,
    ),
  );
}

export function onResumed(step: Step, event: EventOf<"resumed">): void {
  const rank = step.rank(event.rank, "resumed");
  step.expect(asClient(rank), "resumed", rank.phase, ["resuming"], { expected: rank.seq, found: event.seq });
  rank.phase = "train";
  rank.inHandoff = false;
  rank.releasedBytes = 0;
}

export function onReturned(step: Step, event: EventOf<"returned">): void {
  const rank = step.rank(event.rank, "returned");
  const phase = rank.returned ? `${rank.phase}, with everything back` : rank.phase;
  step.expect(asClient(rank), "returned", phase, ["train", "arrived"]);
  rank.returned = true;
}

export function onLogprobCheck(step: Step, event: EventOf<"logprobCheck">): void {
  const rank = step.rank(event.rank, "logprobCheck");
  // Sent after the parameters are back, so the engine may sleep again; the handoff is still the last one.
  if (event.epoch !== step.state.epoch) {
    step.fail(staleEpoch(`rank ${rank.index} compared logprobs of another epoch`, step.state.epoch, event.epoch));
  }
  const { logprobMaxBound, logprobMeanBound } = step.state.config.checks;
  const within = (difference: number | null, bound: number | null): boolean =>
    difference === null || bound === null || difference <= bound; // NaN is not within
  const mean = meanDifference(step, event);
  if (within(event.maxDifference, logprobMaxBound) && within(mean, logprobMeanBound)) return;
  step.fail({
    code: "LOGPROB_MISMATCH",
    message: `trainer and engine disagree about the same tokens (rank ${rank.index}, epoch ${event.epoch})`,
    expected: `differences of at most ${logprobMaxBound ?? "any"}, mean at most ${logprobMeanBound ?? "any"}`,
    found:
      `${event.maxDifference}, mean ${mean ?? "of too few tokens"}; ` +
      `trainer in ${rank.dtype ?? "an unknown type"}, engine in ${step.state.config.engineDtype}`,
    action:
      "Compare dtype and model of trainer and engine; checks.logprobMaxBound and logprobMeanBound set the bounds.",
  });
}

/** A rank compares a dozen tokens, whose mean says little: it is taken over the ranks, and the latest handoffs. */
const TOKENS_OF_A_MEAN = { least: 100, most: 2_000 };

/** Over the tokens that were compared lately; null while they are too few. */
function meanDifference(step: Step, event: EventOf<"logprobCheck">): number | null {
  const { tokens, difference } = step.state.compared;
  const fade = tokens > TOKENS_OF_A_MEAN.most ? 0.5 : 1;
  const compared = {
    tokens: tokens * fade + event.tokens,
    difference: difference * fade + event.tokens * (event.meanDifference ?? 0),
  };
  step.state.compared = compared;
  return compared.tokens < TOKENS_OF_A_MEAN.least ? null : compared.difference / compared.tokens;
}
