/** Results of parts as a bench on a GPU leaves them, and their rows. */
import type { Layout } from "../../src/bench/gpu/plan.js";
import type { PartRecord, PartResult } from "../../src/bench/gpu/results.js";
import type { GpuRow } from "../../src/bench/gpu/row.js";
import { rowsOf } from "../../src/bench/gpu/rows.js";

export const GIB = 2 ** 30;
export const MIB = 2 ** 20;
export const ONE_GPU: Layout = { gpus: 1, engines: 1, tensorParallel: 1 };

interface Changes {
  readonly samples?: PartRecord["samples"];
  readonly values?: PartRecord["values"];
  readonly uuid?: string;
  readonly simulated?: boolean;
  readonly command?: string;
  readonly graphs?: string;
  readonly failure?: PartResult["failure"];
  readonly layout?: Layout;
}

export function result(subject: PartResult["part"]["subject"], side: "ours" | "stock", changes: Changes): PartResult {
  const { samples = {}, values = {}, uuid = "GPU-1", simulated = false, command = "one", failure = null } = changes;
  const variant = subject === "offload" ? "zero2" : subject === "handoff" ? "tight" : "";
  const layout = changes.layout ?? ONE_GPU;
  return {
    part: { name: `${subject}-${side}`, subject, side, shape: "7b", variant, release: "all", layout },
    command: { id: command, at: "2026-01-01T00:00:00Z", words: ["bench"], baton: "0.1.0", node: "v20" },
    graphs: changes.graphs ?? "vllm",
    failure,
    record: {
      job: {},
      finished: failure === null,
      at: "cycles",
      failure: null,
      seconds: 1,
      versions: { torch: "2.11.0", vllm: null },
      machine: { gpu: "NVIDIA H100", uuid, driver: "580.1", totalBytes: 80 * GIB, simulated, gpus: layout.gpus },
      values,
      samples,
    },
    run: null,
  };
}

export const rowOf = (results: readonly PartResult[], metric: string): GpuRow => {
  const row = rowsOf(results).find((one) => one.metric === metric);
  if (row === undefined) throw new Error(`no row ${metric}`);
  return row;
};
