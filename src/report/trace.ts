/**
 * trace.json: the run in the Trace Event Format that Perfetto (ui.perfetto.dev) and chrome://tracing open.
 * One track per process, one slice per phase; memory by GPU as counters.
 */
import { eventsOf, type RunEvent } from "./events.js";

interface TraceEvent {
  readonly name: string;
  readonly ph: "X" | "M" | "C" | "i";
  readonly pid: number;
  readonly tid: number;
  /** Microseconds since the run began. */
  readonly ts?: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly s?: "g";
  readonly args?: Record<string, unknown>;
}

export interface Trace {
  readonly displayTimeUnit: "ms";
  readonly otherData: Record<string, unknown>;
  readonly traceEvents: readonly TraceEvent[];
}

/** Tracks are sorted so: the controller, the launcher, ranks, engines with their workers. */
function sortIndex(process: string): number {
  const of = (pattern: RegExp): number[] | null => pattern.exec(process)?.slice(1).map(Number) ?? null;
  const rank = of(/^rank (\d+)$/);
  if (rank !== null) return 100 + (rank[0] ?? 0);
  const engine = of(/^engine (\d+)$/);
  if (engine !== null) return 10_000 + (engine[0] ?? 0) * 100;
  const worker = of(/^worker (\d+) of engine (\d+)$/);
  if (worker !== null) return 10_001 + (worker[1] ?? 0) * 100 + (worker[0] ?? 0);
  return process === "controller" ? 0 : 1;
}

export function trace(events: readonly RunEvent[]): Trace {
  const started = eventsOf(events, "started")[0];
  const end = events.at(-1)?.monotonicMs ?? 0;
  const zero = started?.monotonicMs ?? 0;
  const micros = (ms: number): number => Math.round((ms - zero) * 1000);
  const pids = trackIds(events);
  const out: TraceEvent[] = [];
  for (const [process, pid] of pids) {
    out.push(
      { name: "process_name", ph: "M", pid, tid: pid, args: { name: process } },
      { name: "process_sort_index", ph: "M", pid, tid: pid, args: { sort_index: sortIndex(process) } },
      { name: "thread_name", ph: "M", pid, tid: pid, args: { name: process } },
    );
  }
  const controller = pids.get("controller") ?? 0;
  const phases = eventsOf(events, "phase");
  phases.forEach((phase, position) => {
    const until = phases[position + 1]?.monotonicMs ?? end;
    out.push({
      name: phase.to,
      ph: "X",
      cat: "phase",
      pid: controller,
      tid: controller,
      ts: micros(phase.monotonicMs),
      dur: micros(until) - micros(phase.monotonicMs),
      args: { handoff: phase.handoff, epoch: phase.epoch },
    });
  });
  for (const work of eventsOf(events, "work")) {
    const pid = pids.get(work.process) ?? controller;
    out.push({
      name: work.name,
      ph: "X",
      cat: work.phase,
      pid,
      tid: pid,
      ts: micros(work.startMs),
      dur: Math.max(0, Math.round(work.durationMs * 1000)),
      args: { phase: work.phase, ...work.figures },
    });
  }
  for (const memory of eventsOf(events, "memory")) {
    memory.usedBytes.forEach((usedBytes, gpu) => {
      out.push({
        name: `GPU ${gpu} memory`,
        ph: "C",
        pid: controller,
        tid: controller,
        ts: micros(memory.monotonicMs),
        args: { MiB: Math.round(usedBytes / 2 ** 20) },
      });
    });
  }
  for (const event of events) {
    if (event.type === "exit") {
      const name = event.failure === null ? `exit: ${event.reason}` : event.failure.code;
      out.push({ name, ph: "i", s: "g", pid: controller, tid: controller, ts: micros(event.monotonicMs) });
    }
  }
  return {
    displayTimeUnit: "ms",
    otherData: { run: started?.run, version: started?.version, simulated: started?.simulated ?? null },
    traceEvents: out,
  };
}

/** The process id of each track; a process that came back under another id keeps its first. */
function trackIds(events: readonly RunEvent[]): Map<string, number> {
  const pids = new Map<string, number>();
  for (const event of eventsOf(events, "process")) {
    if (!pids.has(event.process)) {
      pids.set(event.process, event.pid);
    }
  }
  return pids;
}
