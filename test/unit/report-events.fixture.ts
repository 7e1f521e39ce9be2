/** The events of a small run: two GPUs, two ranks, one engine, two handoffs. */
import type { EventBody, RunEvent } from "../../src/report/events.js";

const MiB = 2 ** 20;

export function smallRun(): RunEvent[] {
  const events: RunEvent[] = [];
  let ms = 1_000_000;
  const at = (afterMs: number, body: EventBody): void => {
    ms += afterMs;
    events.push({ monotonicMs: ms, wall: new Date(ms).toISOString(), ...body });
  };
  let phase: string | null = null;
  const to = (afterMs: number, name: string, handoff: number, epoch: number | null): void => {
    at(afterMs, { type: "phase", from: phase, to: name, handoff, epoch, deadlineMs: 60_000 });
    phase = name;
  };
  at(0, {
    type: "started",
    run: "abc",
    version: "0.1.0",
    simulated: true,
    topology: { gpus: 2, ranks: 2, engines: 1, tensorParallel: 2, zeroStage: null },
    gpuBytes: [256 * MiB, 256 * MiB],
    command: ["accelerate", "launch"],
  });
  for (const [process, pid, gpu] of [
    ["controller", 10, null],
    ["launcher", 11, null],
    ["rank 0", 20, 0],
    ["rank 1", 21, 1],
    ["engine 0", 30, null],
    ["worker 0 of engine 0", 31, 0],
    ["worker 1 of engine 0", 32, 1],
  ] as const) {
    at(1, { type: "process", process, pid, gpu, what: "connected", exitCode: null, signal: null });
  }
  at(1, {
    type: "model",
    zeroStage: 3,
    dtype: "float32",
    tensors: 26,
    elements: 500_000,
    stateBytes: [8 * MiB, 8 * MiB],
  });
  at(0, { type: "ready", engine: 0, gpus: [0, 1], weightBytes: 2 * MiB, cacheBytes: 4 * MiB });
  to(1, "start", 0, null);
  to(500, "train", 0, null);
  for (const handoff of [1, 2]) {
    at(100 * handoff, {
      type: "memory",
      phase: "train",
      usedBytes: [90 * MiB, 80 * MiB],
      peakBytes: [100 * MiB, 90 * MiB],
    });
    at(0, { type: "metrics", rank: 0, step: handoff - 1, values: { reward: 0.25 * handoff, heldOut: 0.3 * handoff } });
    to(0, "arrive", handoff, null);
    to(5, "release", handoff, null);
    for (const gpu of [0, 1]) {
      for (const [stage, releasedBytes] of [
        ["optimizer", 6 * MiB * handoff],
        ["all", 2 * MiB * handoff],
      ] as const) {
        at(1, {
          type: "released",
          rank: gpu,
          gpu,
          handoff,
          stage,
          releasedBytes,
          savedBytes: releasedBytes,
          cleanBytes: 0,
          deadBytes: 0,
          keptBytes: 1 * MiB,
          outsideBytes: 2 * MiB,
        });
      }
      at(0, {
        type: "work",
        process: `rank ${gpu}`,
        name: "releasing",
        phase: "release",
        startMs: ms - 2,
        durationMs: 2,
        figures: { releasedBytes: 6 * MiB, simulatedSeconds: 0.125 },
      });
    }
    to(2, "sync", handoff, null);
    at(3, { type: "checked", engine: 0, epoch: handoff, passed: 26, failed: 0 });
    at(0, { type: "awake", engine: 0, gpus: [0, 1], tags: ["weights", "kv_cache"] });
    to(0, "generate", handoff, handoff);
    at(40, {
      type: "logprob",
      rank: 0,
      epoch: handoff,
      tokens: 12,
      maxDifference: handoff * 1e-6,
      meanDifference: 1e-7,
    });
    at(0, { type: "memory", phase: "generate", usedBytes: [70 * MiB, 70 * MiB], peakBytes: [120 * MiB, 70 * MiB] });
    to(0, "sleep", handoff, handoff);
    at(1, { type: "asleep", engine: 0, handoff, gpus: [0, 1], leftBytes: [3 * MiB, null] });
    to(4, "resume", handoff, handoff);
    to(6, "train", handoff, handoff);
  }
  to(10, "end", 2, 2);
  at(5, { type: "left", processes: 0, deviceBytes: [0, 0] });
  at(5, { type: "exit", reason: "finished", code: 0, failure: null });
  return events;
}
