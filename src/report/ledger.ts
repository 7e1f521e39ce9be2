/** The memory ledger as the events of a run tell it: whoever has the events has the ledger. */
import { Ledger } from "../memory/index.js";
import { eventsOf, type RunEvent, type StartedEvent } from "./events.js";
import type { LedgerFigures } from "./summary.js";

/** Replays the events into a ledger. */
export function ledgerOf(events: readonly RunEvent[]): Ledger {
  const started = startOf(events);
  const ledger = new Ledger(started.topology.gpus);
  for (const event of events) enter(ledger, event, started.gpuBytes);
  return ledger;
}

/** Enters one event; most say nothing of memory. */
export function enter(ledger: Ledger, event: RunEvent, gpuBytes: readonly number[]): void {
  switch (event.type) {
    case "memory":
      event.usedBytes.forEach((usedBytes, gpu) => {
        ledger.measured(gpu, gpuBytes[gpu] ?? 0, usedBytes, event.peakBytes[gpu]);
      });
      break;
    case "model":
      event.stateBytes.forEach((_, rank) => {
        ledger.attached(rank, rank);
      });
      break;
    case "released":
      ledger.released(event.gpu, event.rank, event);
      break;
    case "resumed":
      ledger.resuming(event.gpu, event.rank);
      break;
    case "ready":
      for (const gpu of event.gpus) ledger.engineReady(gpu, event.engine, event.weightBytes, event.cacheBytes);
      break;
    case "awake":
      for (const gpu of event.gpus) ledger.awake(gpu, event.tags);
      break;
    case "asleep":
      event.gpus.forEach((gpu, worker) => {
        ledger.asleep(gpu, event.leftBytes[worker] ?? null);
      });
      break;
    default:
      break;
  }
}

/** What the summary takes from the ledger. */
export function ledgerFigures(events: readonly RunEvent[]): LedgerFigures {
  const { gpus } = startOf(events).topology;
  const ledger = ledgerOf(events);
  return { gpus: Array.from({ length: gpus }, (_, gpu) => ledger.figures(gpu)) };
}

function startOf(events: readonly RunEvent[]): StartedEvent {
  const started = eventsOf(events, "started")[0];
  if (started === undefined) throw new Error("the events of a run begin with `started`");
  return started;
}
