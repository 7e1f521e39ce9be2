/** What engines and their workers say. */
import type { Event } from "./events.js";
import { staleEpoch } from "./failures.js";
import { answerGroup } from "./generation.js";
import type { EngineState } from "./state.js";
import type { Step } from "./step.js";

type EventOf<T extends Event["type"]> = Extract<Event, { type: T }>;

const clientOf = (engine: EngineState) => ({ role: "engine", index: engine.index }) as const;

export function onAwake(step: Step, event: EventOf<"awake">): void {
  const engine = step.engine(event.engine, "awake");
  const seq = { expected: engine.seq, found: event.seq };
  step.expect(clientOf(engine), "awake", engine.stage, ["wakingWeights", "wakingCache"], seq);
  const tag = engine.stage === "wakingWeights" ? "weights" : "kv_cache";
  step.expect(clientOf(engine), "awake", event.tags.join(", "), [tag]);
  const whenCacheIsAwake = engine.proof === null ? "open" : "verifying";
  engine.stage = engine.stage === "wakingWeights" ? "weightsAwake" : whenCacheIsAwake;
}

export function onPlanned(step: Step, event: EventOf<"planned">): void {
  const engine = step.engine(event.engine, "planned");
  const worker = step.worker(engine.index, event.worker, "planned");
  const client = { role: "worker", engine: engine.index, index: worker.index } as const;
  const seq = { expected: engine.seq, found: event.seq };
  step.expect(client, "planned", worker.answered ? "planned" : engine.stage, ["planning"], seq);
  const stranger = event.sources.find((rank) => step.state.ranks[rank] === undefined);
  if (stranger !== undefined) {
    step.expect(client, "planned", `sources of rank ${stranger}`, ["sources of ranks on this node"]);
  }
  worker.answered = true;
  worker.sources = event.sources;
  worker.fallback = event.fallback;
  if (engine.workers.every((one) => one.answered)) {
    engine.planned = true;
    engine.syncs = 0;
    engine.stage = "planned";
  }
}

export function onSynced(step: Step, event: EventOf<"synced">): void {
  const engine = step.engine(event.engine, "synced");
  const worker = step.worker(engine.index, event.worker, "synced");
  const client = { role: "worker", engine: engine.index, index: worker.index } as const;
  const seq = { expected: engine.seq, found: event.seq };
  step.expect(client, "synced", worker.answered ? "synced" : engine.stage, ["syncing"], seq);
  const name = `worker ${worker.index} of engine ${engine.index}`;
  if (event.epoch !== step.state.epoch) {
    step.fail(staleEpoch(`${name} took weights of another epoch`, step.state.epoch, event.epoch));
  }
  if (engine.compare && worker.fallback === null) checkComparison(step, name, event.compared);
  worker.answered = true;
  if (!engine.workers.every((one) => one.answered)) return;
  engine.syncs += 1;
  engine.epoch = step.state.epoch;
  engine.stage = "synced";
}

/** Sums are made while the cache wakes; the engine opens when they have been compared. */
export function onSummed(step: Step, event: EventOf<"summed">): void {
  const engine = step.engine(event.engine, "summed");
  const worker = step.worker(engine.index, event.worker, "summed");
  const client = { role: "worker", engine: engine.index, index: worker.index } as const;
  const seq = { expected: engine.sumsSeq, found: event.seq };
  const asked = worker.summed ? "summed" : (engine.proof ?? "not asked");
  step.expect(client, "summed", worker.answered ? asked : engine.stage, ["sums"], seq);
  worker.summed = true;
}

/** The first sync of a plan is compared with the engine's own way to load weights. */
function checkComparison(step: Step, name: string, compared: readonly string[] | null): void {
  if (compared?.length === 0) return;
  const shown = compared?.slice(0, 5).join(", ");
  const more = compared && compared.length > 5 ? ` and ${compared.length - 5} more` : "";
  step.fail({
    code: "WEIGHTS_DIFFER",
    message: compared
      ? `the copy plan of ${name} does not do what the engine's own load_weights does`
      : `${name} did not compare its first sync`,
    expected: "no parameter that differs after the first sync",
    found: compared ? `${shown}${more}` : "no comparison",
    action: "Report it with the model's config.json; engine.sync: load_weights does without the plan.",
  });
}

export function onVerified(step: Step, event: EventOf<"verified">): void {
  const engine = step.engine(event.engine, "verified");
  step.expect(clientOf(engine), "verified", engine.proof ?? "not asked", ["verdict"]);
  engine.proof = null;
  if (event.failure) step.fail(event.failure);
  if (engine.stage === "verifying") engine.stage = "open";
}

export function onProgress(step: Step, event: EventOf<"progress">): void {
  const engine = step.engine(event.engine, "progress");
  if (engine.stage !== "generating" || event.request !== engine.request) return; // about a request that is over
  // Only what is new restarts the deadline: an engine that repeats itself hangs.
  const further = event.generatedTokens > engine.generatedTokens || event.finishedSamples > engine.finishedSamples;
  if (!further) return;
  engine.generatedTokens = Math.max(engine.generatedTokens, event.generatedTokens);
  engine.finishedSamples = Math.max(engine.finishedSamples, event.finishedSamples);
  engine.progress += 1;
}

export function onGenerated(step: Step, event: EventOf<"generated">): void {
  const engine = step.engine(event.engine, "generated");
  step.expect(clientOf(engine), "generated", engine.stage, ["generating"], {
    expected: engine.request,
    found: event.request,
  });
  if (event.epoch !== engine.epoch) {
    step.fail(
      staleEpoch(`engine ${engine.index} generated with weights of another epoch`, engine.epoch ?? -1, event.epoch),
    );
  }
  engine.stage = "open";
  answerGroup(step, engine, engine.request);
}

export function onAsleep(step: Step, event: EventOf<"asleep">): void {
  const engine = step.engine(event.engine, "asleep");
  const seq = { expected: engine.seq, found: event.seq };
  step.expect(clientOf(engine), "asleep", engine.stage, ["sleeping"], seq);
  engine.stage = "asleep";
  engine.done = true;
  engine.epoch = null; // level 2 discards the weights
}
