/** Rows from what the parts left, with the goals of the project. */
import type { PartResult } from "./results.js";
import {
  atMost,
  fasterThanPeer,
  type Goal,
  type GpuRow,
  gpuRow,
  ofTheLimit,
  once,
  type Spread,
  spread,
} from "./row.js";

const GIB = 2 ** 30;
const MS = 1000;

type Metric = Omit<Parameters<typeof gpuRow>[0], "subject" | "shape" | "simulated" | "failure">;

/** One part and its peer. */
interface Pair {
  readonly ours: PartResult | null;
  readonly stock: PartResult | null;
}

/** All rows that the results allow; a part that failed has a row that says so. */
export function rowsOf(results: readonly PartResult[]): GpuRow[] {
  return pairs(results).flatMap((pair) => {
    const any = pair.ours ?? pair.stock;
    return any === null ? [] : [...failures(pair), ...MAKERS[any.part.subject](pair)];
  });
}

/** Ours and its peer; a peer from another GPU is none. */
function pairs(results: readonly PartResult[]): Pair[] {
  const keys = [...new Set(results.map(({ part }) => `${part.subject} ${part.variant} ${part.shape}`))];
  return keys.map((key) => {
    const of = (side: string): PartResult | null =>
      results.find(({ part }) => `${part.subject} ${part.variant} ${part.shape}` === key && part.side === side) ?? null;
    return { ours: of("ours"), stock: of("stock") };
  });
}

const sameGpu = ({ ours, stock }: Pair): boolean =>
  ours?.record?.machine?.uuid === stock?.record?.machine?.uuid &&
  ours?.record?.machine?.driver === stock?.record?.machine?.driver;

function failures(pair: Pair): GpuRow[] {
  return [pair.ours, pair.stock].flatMap((result) => {
    if (result === null || result.failure === null) return [];
    return [
      gpuRow({
        subject: result.part.subject,
        shape: result.part.shape,
        metric: `${result.part.variant} ${result.part.side === "ours" ? "Baton" : "peer"}`.trim(),
        unit: "",
        better: "lower",
        ours: null,
        simulated: result.record?.machine?.simulated ?? false,
        failure: `${result.failure.code}: ${result.failure.message}`,
        note: `see logs/${result.part.name}.log`,
      }),
    ];
  });
}

/** Reads samples and values of one pair. */
class Figures {
  readonly #pair: Pair;

  constructor(pair: Pair) {
    this.#pair = pair;
  }

  ours = (name: string, scale = 1): Spread | null => spread(this.samples("ours", name), scale);
  peer = (name: string, scale = 1): Spread | null => spread(this.samples("stock", name), scale);
  oursOnce = (name: string, scale = 1): Spread | null => once(this.value(name), scale);

  samples(side: "ours" | "stock", name: string): readonly number[] | undefined {
    if (side === "stock" && !sameGpu(this.#pair)) return undefined;
    return this.#pair[side]?.record?.samples[name];
  }

  value(name: string): unknown {
    return this.#pair.ours?.record?.values[name];
  }

  number(name: string): number | null {
    const value = this.value(name);
    return typeof value === "number" ? value : null;
  }

  /** Bytes a second, cycle by cycle, in GB. */
  rate(side: "ours" | "stock", bytes: string, seconds: string): Spread | null {
    const amount = this.samples(side, bytes);
    const time = this.samples(side, seconds);
    if (amount === undefined || time === undefined) return null;
    return spread(time.map((value, cycle) => (amount[cycle] ?? 0) / value / 1e9));
  }

  /** Sums of several samples, cycle by cycle. */
  sum(side: "ours" | "stock", names: readonly string[], scale: number): Spread | null {
    const all = names.map((name) => this.samples(side, name));
    if (all.some((one) => one === undefined)) return null;
    const cycles = Math.min(...all.map((one) => one?.length ?? 0));
    const totals = Array.from({ length: cycles }, (_, cycle) =>
      all.reduce((total, one) => total + (one?.[cycle] ?? 0), 0),
    );
    return spread(totals, scale);
  }

  /** Rows of those metrics that were measured. */
  rows(subject: string, metrics: readonly Metric[]): GpuRow[] {
    const any = this.#pair.ours;
    if (any === null) return [];
    const simulated = any.record?.machine?.simulated ?? false;
    const elsewhere = this.#pair.stock !== null && !sameGpu(this.#pair) ? "; the peer ran on another GPU" : "";
    return metrics
      .filter(({ ours }) => ours !== null)
      .map((metric) => gpuRow({ ...metric, note: metric.note + elsewhere, subject, shape: any.part.shape, simulated }));
  }
}

const MAKERS: Readonly<Record<PartResult["part"]["subject"], (pair: Pair) => GpuRow[]>> = {
  offload: offloadRows,
  engine: (pair) => [...syncRows(pair), ...sleepRows(pair)],
  handoff: handoffRows,
};

function offloadRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const stage = (pair.ours ?? pair.stock)?.part.variant ?? "";
  const limitOf = (name: string): number | null => {
    const bytes = figures.number(`limit ${name} bytes/s`);
    return bytes === null ? null : bytes / 1e9;
  };
  const release = figures.ours("release seconds", MS);
  const offload = "DeepSpeed offload_states(pin_memory=True, non_blocking=True)";
  const withinFirst: Goal = {
    text: "within 1.3 of a later one",
    value: ({ ours, limit }) => (ours.p50 === null || limit === null ? null : ours.p50 / limit),
    atMost: 1.3,
  };
  return figures.rows(`offload ${stage}`, [
    {
      metric: "release, live bytes a second",
      unit: "GB/s",
      better: "higher",
      ours: figures.rate("ours", "saved bytes", "release seconds"),
      peer: figures.rate("stock", "saved bytes", "release seconds"),
      limit: limitOf("save"),
      goal: ofTheLimit(0.92),
      note: `bytes that have to be saved over the whole time; peer: ${offload}; limit: pinned copy to the host`,
    },
    {
      metric: "release",
      unit: "ms",
      better: "lower",
      ours: release,
      peer: figures.peer("release seconds", MS),
      goal: stage === "zero2" ? fasterThanPeer(2) : null,
      note: `until the memory is free for others; peer: ${offload}`,
    },
    {
      metric: "first release",
      unit: "ms",
      better: "lower",
      ours: once(release?.first),
      peer: once(figures.peer("release seconds", MS)?.first),
      limit: release?.p50 ?? null,
      goal: withinFirst,
      note: "limit: a later one of Baton's",
    },
    {
      metric: "return, live bytes a second",
      unit: "GB/s",
      better: "higher",
      ours: figures.rate("ours", "copied bytes", "return seconds"),
      peer: figures.rate("stock", "saved bytes", "return seconds"),
      limit: limitOf("load"),
      note: "waited for in one piece; peer: reload_states(non_blocking=True); limit: pinned copy from the host",
    },
    {
      metric: "return",
      unit: "ms",
      better: "lower",
      ours: figures.ours("return seconds", MS),
      peer: figures.peer("return seconds", MS),
      note: "waited for in one piece; peer: reload_states(non_blocking=True)",
    },
    {
      metric: "left on the GPU beside the context",
      unit: "GiB",
      better: "lower",
      ours: figures.ours("left bytes", 1 / GIB),
      peer: figures.peer("left bytes", 1 / GIB),
      goal: atMost(0.4, "at most 0.4 GiB"),
      note: "NVML's device total, less what it was with a bare CUDA context",
    },
    {
      metric: "training step",
      unit: "ms",
      better: "lower",
      ours: figures.ours("step seconds", MS),
      peer: figures.peer("step seconds", MS),
      note: "between the cycles",
    },
  ]);
}

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

function handoffRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const variant = (pair.ours ?? pair.stock)?.part.variant ?? "";
  const tokens = figures.ours("to first tokens seconds", MS);
  const stockTokens = figures.peer("to first tokens seconds", MS);
  const released = pair.ours?.run?.releasedBytes;
  const scripted = "offload_states, wake_up, IPC transfer, wake_up, scripted well";
  const staying: Metric[] =
    variant === "roomy"
      ? [
          {
            metric: "training to first tokens, to a peer that offloads nothing",
            unit: "ms",
            better: "lower",
            ours: tokens,
            peer: figures.peer("staying: to first tokens seconds", MS),
            note: "peer: wake_up, IPC transfer, wake_up by hand where everything fits",
          },
        ]
      : [];
  return figures.rows(`handoff ${variant}`, [
    {
      metric: "training to first tokens",
      unit: "ms",
      better: "lower",
      ours: tokens,
      peer: stockTokens,
      goal: fasterThanPeer(variant === "tight" ? 1.8 : 5),
      note: `64 prompts of 64 tokens, until each has a token; ours: a whole baton run; peer: ${scripted}`,
    },
    {
      metric: "training to first tokens, the very first",
      unit: "ms",
      better: "lower",
      ours: once(tokens?.first),
      peer: once(stockTokens?.first),
      goal: fasterThanPeer(15),
      note: "ours makes its copy plan and compares every parameter with load_weights in it",
    },
    ...staying,
    {
      metric: "generation to first forward pass",
      unit: "ms",
      better: "lower",
      ours: figures.ours("to first forward seconds", MS),
      peer: figures.peer("to first forward seconds", MS),
      goal: fasterThanPeer(4),
      note: "ours: the pass that compares logprobs begins; peer: sleep(2), reload_states",
    },
    {
      metric: "generation until training goes on",
      unit: "ms",
      better: "lower",
      ours: figures.ours("to the end of the rollout seconds", MS),
      peer: figures.peer("to first forward seconds", MS),
      note: "ours with its comparison of logprobs, which the peer does not make",
    },
    {
      metric: "training step behind which state streams in",
      unit: "ms",
      better: "lower",
      ours: figures.ours("step seconds", MS),
      limit: median(figures.samples("ours", "plain step seconds"), MS),
      goal: {
        text: "no slower (within 5%) than a plain step",
        value: ({ ours, limit }) => (ours.p50 === null || limit === null ? null : ours.p50 / limit),
        atMost: 1.05,
      },
      note: "limit: a step of the same process without a handoff before it",
    },
    {
      metric: "of that, waited for optimizer state",
      unit: "ms",
      better: "lower",
      ours: figures.ours("waited seconds", MS),
      note: "by optimizer.step",
    },
    {
      metric: "released by training",
      unit: "GiB",
      better: "lower",
      ours: spread(released, 1 / GIB),
      note: variant === "tight" ? "release: all" : "release: needed",
    },
    {
      metric: "in use while generating",
      unit: "GiB",
      better: "lower",
      ours: figures.ours("used while generating bytes", 1 / GIB),
      peer: figures.peer("used while generating bytes", 1 / GIB),
      note: "NVML's device total",
    },
  ]);
}

function median(samples: readonly number[] | undefined, scale: number): number | null {
  if (samples === undefined || samples.length === 0) return null;
  const sorted = [...samples].sort((a, b) => a - b);
  return (sorted[Math.floor(sorted.length / 2)] as number) * scale;
}
