/** Rows from what the parts left, with the goals of the project. */
import { engineRows } from "./engine-rows.js";
import { layoutText, type Pair } from "./figures.js";
import { handoffRows } from "./handoff-rows.js";
import { offloadRows } from "./offload-rows.js";
import type { PartResult } from "./results.js";
import { type GpuRow, gpuRow } from "./row.js";

const MAKERS: Readonly<Record<PartResult["part"]["subject"], (pair: Pair) => GpuRow[]>> = {
  offload: offloadRows,
  engine: engineRows,
  handoff: handoffRows,
};

/** All rows that the results allow; a part that failed has a row that says so. */
export function rowsOf(results: readonly PartResult[]): GpuRow[] {
  return pairs(results).flatMap((pair) => {
    const any = pair.ours ?? pair.stock;
    return any === null ? [] : [...failures(pair), ...MAKERS[any.part.subject](pair)];
  });
}

/** Ours and its peer; a peer from another GPU is none. */
function pairs(results: readonly PartResult[]): Pair[] {
  const keyOf = ({ part }: PartResult): string => JSON.stringify([part.subject, part.variant, part.shape, part.layout]);
  const keys = [...new Set(results.map(keyOf))];
  return keys.map((key) => {
    const of = (side: string): PartResult | null =>
      results.find((result) => keyOf(result) === key && result.part.side === side) ?? null;
    return { ours: of("ours"), stock: of("stock") };
  });
}

function failures(pair: Pair): GpuRow[] {
  return [pair.ours, pair.stock].flatMap((result) => {
    if (result === null || result.failure === null) return [];
    return [
      gpuRow({
        subject: result.part.subject + layoutText(result.part.layout),
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
