/** Sync and sleep, which share one engine. */
import { Figures, GIB, type Metric, MS, type Pair } from "./figures.js";
import { atMost, fasterThanPeer, type GpuRow, ofTheLimit, type Spread, spread } from "./row.js";

export const engineRows = (pair: Pair): GpuRow[] => [...syncRows(pair), ...sleepRows(pair)];

const LAYOUTS = [
  ["zero2", "sync from ZeRO-2"],
  ["zero3", "sync from ZeRO-3, one rank"],
  ["zero3x2", "sync from ZeRO-3, two ranks on the GPU"],
] as const;

function syncRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const copy = spread(figures.samples("ours", "limit copy seconds"));
  const bytes = figures.number("limit copy bytes");
  const limitMs = copy?.p50 == null ? null : copy.p50 * MS;
  const limitRate = copy?.p50 == null || bytes === null ? null : bytes / copy.p50 / 1e9;
  const ipc = fasterOf(figures.peer("ipc unpacked seconds", MS), figures.peer("ipc packed seconds", MS));
  const gathered = figures.peer("gather and load seconds", MS);
  const is7b = pair.ours?.part.shape === "7b";
  return LAYOUTS.flatMap(([layout, subject]) => {
    const stage2 = layout === "zero2";
    const peer = stage2 ? ipc : gathered;
    const peerNote = stage2
      ? "vLLM's IPC transfer, packed or not, whichever is faster"
      : "a copy into one bucket (all that gathering is for one rank), then load_weights from it";
    const copied = figures.number(`${layout} copied bytes`);
    const rates = figures.samples("ours", `${layout} copy seconds`)?.map((seconds) => (copied ?? 0) / seconds / 1e9);
    const segments = figures.number(`${layout} segments with weights`);
    return figures.rows(subject, [
      {
        metric: "whole, with checksums",
        unit: "ms",
        better: "lower",
        ours: figures.ours(`${layout} sync with checksums seconds`, MS),
        peer,
        limit: limitMs,
        goal: stage2 && is7b ? fasterThanPeer(12) : null,
        note: `as a run does it; peer: ${peerNote}; limit: device-to-device copy of the same bytes`,
      },
      {
        metric: "whole, without checksums",
        unit: "ms",
        better: "lower",
        ours: figures.ours(`${layout} sync seconds`, MS),
        peer,
        limit: limitMs,
        note: `checks.weights: off; peer: ${peerNote}`,
      },
      ...(stage2
        ? [
            {
              metric: "whole, without checksums, to load_weights",
              unit: "ms",
              better: "lower" as const,
              ours: figures.ours("zero2 sync seconds", MS),
              peer: figures.peer("load seconds", MS),
              limit: limitMs,
              note: "peer: load_weights from one buffer of the trainer that stays mapped",
            },
          ]
        : []),
      {
        metric: "of that, the copy",
        unit: "GB/s",
        better: "higher",
        ours: spread(rates),
        limit: limitRate,
        goal: ofTheLimit(0.85),
        note: "the copy kernel alone; limit: device-to-device copy of the same bytes",
      },
      {
        metric: "of that, mapping and unmapping",
        unit: "ms",
        better: "lower",
        ours: figures.sum("ours", [`${layout} map seconds`, `${layout} unmap seconds`], MS),
        note: "the trainer's segments in the worker",
      },
      {
        metric: "GPU memory taken meanwhile",
        unit: "GiB",
        better: "lower",
        ours: figures.oursOnce(`${layout} bytes taken by a sync`, 1 / GIB),
        goal: atMost(0, "0 bytes"),
        note: "the most that NVML's device total rises during a sync: gather buffers would show",
      },
      {
        metric: "handles opened",
        unit: "",
        better: "lower",
        ours: figures.oursOnce(`${layout} descriptors`),
        limit: segments,
        goal: {
          text: "at most one a segment",
          value: ({ ours, limit }) => (ours.p50 === null || limit === null ? null : ours.p50 - limit),
          atMost: 0,
        },
        note: "descriptors a sync; limit: segments with parameters",
      },
    ]);
  });
}

/** The one with the smaller p50. */
function fasterOf(a: Spread | null, b: Spread | null): Spread | null {
  if (a?.p50 == null || b?.p50 == null) return a?.p50 == null ? b : a;
  return a.p50 <= b.p50 ? a : b;
}

function sleepRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const steps = ["sleep seconds", "wake weights seconds", "wake cache seconds"];
  const each = steps.map(
    (name): Metric => ({
      metric: name.replace(" seconds", ""),
      unit: "ms",
      better: "lower",
      ours: figures.ours(name, MS),
      peer: figures.peer(name, MS),
      note: "peer: vLLM's sleep(2), wake_up",
    }),
  );
  return figures.rows("sleep", [
    {
      metric: "sleep and both wakes",
      unit: "ms",
      better: "lower",
      ours: figures.sum("ours", steps, MS),
      peer: figures.sum("stock", steps, MS),
      goal: fasterThanPeer(2),
      note: "level 2, the same cache on both sides; peer: vLLM's own sleep mode",
    },
    ...each,
    {
      metric: "in use while asleep",
      unit: "GiB",
      better: "lower",
      ours: figures.ours("asleep bytes", 1 / GIB),
      peer: figures.peer("asleep bytes", 1 / GIB),
      note: "NVML's device total; with ours the trainer's weights and the bench's context are in it",
    },
  ]);
}
