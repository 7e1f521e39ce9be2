/** Release and return of training state. */
import { Figures, GIB, MS, type Pair } from "./figures.js";
import { atMost, fasterThanPeer, type Goal, type GpuRow, ofTheLimit, once } from "./row.js";

export function offloadRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const stage = (pair.ours ?? pair.stock)?.part.variant ?? "";
  const limitOf = (name: string): number | null => {
    const bytes = figures.number(`limit ${name} bytes/s`);
    return bytes === null ? null : bytes / 1e9;
  };
  const release = figures.ours("release seconds", MS);
  const deciding = figures.ours("deciding seconds", MS);
  const offload = "DeepSpeed offload_states(pin_memory=True, non_blocking=True)";
  const withinFirst: Goal = {
    text: "within 1.3 of a later one",
    value: ({ ours, limit }) => (ours.p50 === null || limit === null ? null : ours.p50 / limit),
    atMost: 1.3,
  };
  const several = figures.gpus > 1 ? ", of each GPU, all of them at once" : "";
  // All GPUs of a large machine share more than two do.
  const rate: Goal =
    figures.gpus > 2 ? { ...ofTheLimit(1 / 1.15), text: "within 1.15 of the limit" } : ofTheLimit(0.92);
  return figures.rows(`offload ${stage}`, [
    {
      metric: "release, live bytes a second",
      unit: "GB/s",
      better: "higher",
      ours: figures.rate("ours", "saved bytes", "release seconds"),
      peer: figures.rate("stock", "saved bytes", "release seconds"),
      limit: limitOf("save"),
      goal: rate,
      ...(typeof deciding?.p50 === "number" && typeof release?.p50 === "number"
        ? { why: `of ${release.p50.toFixed(0)} ms ${deciding.p50.toFixed(0)} pass before anything is copied` }
        : {}),
      note:
        `bytes that have to be saved over the whole time${several}; peer: ${offload}; ` +
        `limit: pinned copy to the host${several}`,
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
      metric: "of that, deciding what is live",
      unit: "ms",
      better: "lower",
      ours: deciding,
      note: "before anything is copied: parameters, gradients and optimizer state are looked up in torch's blocks",
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
      goal: figures.gpus > 2 ? rate : null,
      note:
        `waited for in one piece${several}; peer: reload_states(non_blocking=True); ` +
        `limit: pinned copy from the host${several}`,
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
      why: "NCCL and the kernels of CUDA hold it, not training state: test/gpu/left_costs.py says how much each",
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
