/** Sync and sleep, which share one engine. */
import { Figures, GIB, type Metric, MS, type Pair } from "./figures.js";
import { asFastAsPeer, atMost, fasterThanPeer, type GpuRow, ofTheLimit, once, type Spread, spread } from "./row.js";

export const engineRows = (pair: Pair): GpuRow[] => [...syncRows(pair), ...sleepRows(pair)];

const ON_ONE_GPU = [
  ["zero2", "sync from ZeRO-2"],
  ["zero3", "sync from ZeRO-3, one rank"],
  ["zero3x2", "sync from ZeRO-3, two ranks on the GPU"],
] as const;
const ON_SEVERAL = [
  ["zero2", "sync from ZeRO-2"],
  ["zero3", "sync from ZeRO-3"],
] as const;

/** How a figure is judged. */
type Judged = Pick<Metric, "goal" | "why">;

const WHY_NOT_12 =
  "the goal is about the speed of a device-to-device copy of the same bytes; mapping, unmapping and messages take their " +
  "time beside the copy, and ranks sum up their weights for longer than weights take to wake";
const WHY_NOT_THE_COPY = "mapping and unmapping the trainer's segments and messages take their time beside the copy";

/** Milliseconds of the sync of a 7B policy, as the caller sees it, by ZeRO stage and layout of the engines. */
const SYNC_MS: Readonly<Record<string, number>> = { "zero2 1x2": 8, "zero3 2x4": 15 };

function syncRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const several = figures.gpus > 1;
  const copy = spread(figures.samples("ours", "limit copy seconds"));
  const bytes = figures.number("limit copy bytes");
  const localMs = copy?.p50 == null ? null : copy.p50 * MS;
  const localRate = copy?.p50 == null || bytes === null ? null : bytes / copy.p50 / 1e9;
  const peerBytes = figures.number("limit peer bytes/s");
  const ipc = fasterOf(figures.peer("ipc unpacked seconds", MS), figures.peer("ipc packed seconds", MS));
  const gathered = figures.peer("gather and load seconds", MS);
  const is7b = pair.ours?.part.shape === "7b";
  const layout = pair.ours?.part.layout;
  return (several ? ON_SEVERAL : ON_ONE_GPU).flatMap(([name, subject]) => {
    const stage2 = name === "zero2";
    const peer = stage2 ? ipc : gathered;
    const oneEngine = stage2
      ? "vLLM's IPC transfer, packed or not, whichever is faster"
      : "a copy into one bucket (all that gathering is for one rank), then load_weights from it";
    const peerNote = several ? "vLLM's IPC transfer with the handles of all GPUs, under ZeRO-2" : oneEngine;
    const copied = figures.number(`${name} copied bytes`);
    const remote = figures.number(`${name} copied from other GPUs bytes`);
    const samples = figures.samples("ours", `${name} copy seconds`);
    const rates = samples?.map((seconds) => (copied ?? 0) / seconds / 1e9);
    const segments = figures.number(`${name} segments with weights`);
    // Both go on at once: within the GPU, and from others.
    const own = copied === null || remote === null || localRate === null ? null : (copied - remote) / localRate / 1e6;
    const remoteMs = remote === null || peerBytes === null ? null : (remote / peerBytes) * MS;
    const bothMs = own === null || remoteMs === null ? null : Math.max(own, remoteMs);
    const limitMs = stage2 || !several ? localMs : bothMs;
    const linksDecide = own !== null && remoteMs !== null && remoteMs > own;
    const most = SYNC_MS[`${name} ${layout?.engines}x${layout?.tensorParallel}`];
    const within = `device-to-device copy of the same bytes${several ? ", on all GPUs at once" : ""}`;
    const limited =
      stage2 || !several
        ? within
        : "the slower of a device-to-device copy of what is on the GPU and a copy between GPUs of the rest, on all at once";
    const absolute = several && is7b && most !== undefined ? atMost(most, `at most ${most} ms`) : null;
    const overLinks: Metric[] =
      several && !stage2
        ? [
            {
              metric: "of that, what comes from other GPUs",
              unit: "GB/s",
              better: "higher",
              ours: spread(samples?.map((seconds) => (remote ?? 0) / seconds / 1e9)),
              limit: peerBytes === null ? null : peerBytes / 1e9,
              goal: linksDecide ? ofTheLimit(0.85) : null,
              note:
                "its bytes over the time of the whole copy, by the worker that has most of it; limit: copies between " +
                "the GPUs, all of them at once",
            },
            {
              metric: "bytes from other GPUs",
              unit: "GiB",
              better: "lower",
              ours: figures.oursOnce(`${name} copied from other GPUs bytes`, 1 / GIB),
              note: "by the worker that has most of them",
            },
          ]
        : [];
    const checks: Metric[] = several
      ? [
          {
            metric: "parameters that differ from load_weights",
            unit: "",
            better: "lower",
            ours: once(lengthOf(figures.value(`${name} parameters that differ from load_weights`))),
            goal: atMost(0, "none"),
            note: "in any worker, after the first sync; each later one with checksums is compared by them",
          },
        ]
      : [];
    // What goes on beside these takes its time in any case: ranks export while weights wake, engines sum while caches do.
    const waking = warm(figures.ours("wake weights seconds"));
    const caching = warm(figures.ours(`${name} cache after sync seconds`));
    const timed = (
      part: "whole" | "as a run waits for it",
      sums: "with" | "without",
      note: string,
      judged?: Judged,
    ) => {
      const checksums = sums === "with";
      const whole = part === "whole";
      const named = (step: string) => `${name} ${step}${checksums ? " with checksums" : ""} seconds`;
      const beside = [
        ...(whole ? [] : [{ name: named("export"), seconds: waking }]),
        ...(checksums ? [{ name: named("cache after sync"), seconds: caching }] : []),
      ];
      const steps = [...(whole ? [named("export")] : []), named("exported sync")];
      return {
        ...{ metric: `${part}, ${sums} checksums`, unit: "ms", better: "lower" as const },
        ours: figures.sum("ours", steps, MS, beside),
        ...{ peer, limit: limitMs, note, ...judged },
      };
    };
    // The goals of a single GPU are those of a 7B policy; partitions are to come as fast as gathered weights in any.
    const fromWhole = several || !is7b ? {} : { goal: fasterThanPeer(12), why: WHY_NOT_12 };
    const ofTheCopy = is7b ? { goal: ofTheLimit(0.85), why: WHY_NOT_THE_COPY } : {};
    const withoutSums = stage2 ? ofTheCopy : { goal: asFastAsPeer };
    return figures.rows(subject, [
      timed("whole", "with", `exporting, summing, mapping, copying, letting go; peer: ${peerNote}; limit: ${limited}`),
      timed(
        "as a run waits for it",
        "with",
        "from the export until the weights are there, and what ranks that export and sum take beyond the p50 of weights " +
          `that wake, and what caches then take beyond the p50 of those without sums; peer: ${peerNote}`,
        stage2 ? fromWhole : { goal: asFastAsPeer },
      ),
      timed("whole", "without", `checks.weights: off; peer: ${peerNote}`),
      timed(
        "as a run waits for it",
        "without",
        "the ranks export while the engines wake, and only what goes beyond that is added; checks.weights: off",
        several ? { goal: absolute } : withoutSums,
      ),
      ...(stage2 && !several
        ? [
            {
              metric: "whole, without checksums, to load_weights",
              unit: "ms",
              better: "lower" as const,
              ours: figures.sum("ours", ["zero2 export seconds", "zero2 exported sync seconds"], MS),
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
        limit: stage2 || !several ? localRate : copied === null || bothMs === null ? null : copied / bothMs / 1e6,
        goal: ofTheLimit(0.85),
        note: `the copy kernel alone; limit: ${limited}`,
      },
      ...overLinks,
      {
        metric: "of that, mapping and unmapping",
        unit: "ms",
        better: "lower",
        ours: figures.sum("ours", [`${name} map seconds`, `${name} unmap seconds`], MS),
        note: "the trainer's segments in the worker",
      },
      ...checks,
      {
        metric: "GPU memory taken meanwhile",
        unit: "GiB",
        better: "lower",
        ours: figures.oursOnce(`${name} bytes taken by a sync`, 1 / GIB),
        goal: atMost(0, "0 bytes"),
        note: "the most that NVML's device total rises during a sync: gather buffers would show",
      },
      {
        metric: "handles opened",
        unit: "",
        better: "lower",
        ours: figures.oursOnce(`${name} descriptors`),
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

/** null: it was not compared, because load_weights itself is used. */
const lengthOf = (value: unknown): number | null => (Array.isArray(value) ? value.length : null);

/** Of the warm cycles; the cold one where there is no other. */
const warm = (spread: Spread | null): number | null => spread?.p50 ?? spread?.first ?? null;

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
