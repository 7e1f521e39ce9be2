/** What a `baton run` says of its handoffs in events.jsonl. */
import { eventsOf, type RunEvent } from "../../report/events.js";
import type { RunFigures } from "./results.js";
import { gpuMoves, phaseLedger } from "./run-gpus.js";

/**
 * Durations of the phases of each handoff, in seconds; a phase that came twice in one handoff counts together.
 *
 * @param left what each side leaves on each GPU, from the run's summary
 */
export function runFigures(events: readonly RunEvent[], left: RunFigures["left"] = []): RunFigures {
  const byPhase = new Map<string, Map<number, number>>();
  const phases = eventsOf(events, "phase");
  phases.forEach((phase, position) => {
    const next = phases[position + 1];
    if (next === undefined || phase.handoff === 0) return;
    const durations = byPhase.get(phase.to) ?? new Map<number, number>();
    const seconds = (next.monotonicMs - phase.monotonicMs) / 1000;
    durations.set(phase.handoff, (durations.get(phase.handoff) ?? 0) + seconds);
    byPhase.set(phase.to, durations);
  });
  const released = new Map<number, number>();
  for (const { handoff, releasedBytes } of eventsOf(events, "released")) {
    released.set(handoff, (released.get(handoff) ?? 0) + releasedBytes);
  }
  const handoffs = [...new Set(phases.map(({ handoff }) => handoff))].filter((handoff) => handoff > 0);
  const checked = eventsOf(events, "checked");
  const exit = eventsOf(events, "exit").at(-1);
  return {
    phases: Object.fromEntries([...byPhase].map(([name, durations]) => [name, [...durations.values()]])),
    checks: {
      passed: checked.reduce((sum, { passed }) => sum + passed, 0),
      failed: checked.reduce((sum, { failed }) => sum + failed, 0),
      fallbacks: eventsOf(events, "note").filter(({ code }) => code === "LOAD_WEIGHTS").length,
    },
    gpus: gpuMoves(events),
    ledger: phaseLedger(events),
    left,
    releasedBytes: handoffs.map((handoff) => released.get(handoff) ?? 0),
    failure: exit?.failure ? { code: exit.failure.code, message: exit.failure.message } : null,
  };
}
