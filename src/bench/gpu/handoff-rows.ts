/** Whole handoffs, there and back. */
import { Figures, GIB, type Metric, MS, type Pair } from "./figures.js";
import { longRunMetrics } from "./long-run-rows.js";
import { fasterThanPeer, type GpuRow, once, spread } from "./row.js";

/** With several chunks the packed way loses its buffer each time, for which a handoff has no room. */
const SENT = "IPC transfer (not packed)";

export function handoffRows(pair: Pair): GpuRow[] {
  const figures = new Figures(pair);
  const variant = (pair.ours ?? pair.stock)?.part.variant ?? "";
  const tokens = figures.ours("to first tokens seconds", MS);
  const stockTokens = figures.peer("to first tokens seconds", MS);
  const released = pair.ours?.run?.releasedBytes;
  const scripted = `offload_states, wake_up, ${SENT}, wake_up, scripted well`;
  const staying: Metric[] = variant.startsWith("roomy")
    ? [
        {
          metric: "training to first tokens, to a peer that offloads nothing",
          unit: "ms",
          better: "lower",
          ours: tokens,
          peer: figures.peer("staying: to first tokens seconds", MS),
          note: `peer: wake_up, ${SENT}, wake_up by hand where everything fits`,
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
      goal: fasterThanPeer(variant.startsWith("tight") ? 1.8 : 5),
      note: `64 prompts of 64 tokens, until each has a token; ours: a whole baton run; peer: ${scripted}`,
    },
    {
      metric: "training to first tokens, the very first",
      unit: "ms",
      better: "lower",
      ours: once(tokens?.first),
      peer: once(stockTokens?.first),
      goal: fasterThanPeer(15),
      why: "it makes the copy plan and compares every parameter with load_weights, which later ones do not",
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
      why:
        "optimizer.step waits for what has not streamed in yet: the copy engines are slow while the driver clears the " +
        "memory that the engine gave back, and this step computes for less time than that takes",
      note: "limit: the next step in the same cycle, without a handoff before it",
    },
    {
      metric: "forward pass of the reference model",
      unit: "ms",
      better: "lower",
      ours: figures.ours("reference seconds", MS),
      peer: figures.peer("reference seconds", MS),
      note: "brought to the GPU for it, and sent away again where the job says so; with adapters the policy itself",
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
      note: variant.startsWith("tight") ? "release: all" : "release: needed",
    },
    {
      metric: "in use while generating",
      unit: "GiB",
      better: "lower",
      ours: figures.ours("used while generating bytes", 1 / GIB),
      peer: figures.peer("used while generating bytes", 1 / GIB),
      note: "NVML's device total",
    },
    ...longRunMetrics(figures),
  ]);
}

function median(samples: readonly number[] | undefined, scale: number): number | null {
  if (samples === undefined || samples.length === 0) return null;
  const sorted = [...samples].sort((a, b) => a - b);
  return (sorted[Math.floor(sorted.length / 2)] as number) * scale;
}
