/** What a benchmark prints: our figure between the peer's and the limit, all from one run. */

export const SUBJECTS = ["barrier", "gather", "pool", "sampler"] as const;
export type Subject = (typeof SUBJECTS)[number];

export interface BenchRow {
  readonly subject: string;
  readonly metric: string;
  readonly unit: string;
  readonly ours: number;
  /** What people use today, measured in the same run. null: there is none. */
  readonly peer: number | null;
  /** What this machine allows, or the most that the subject may take. null: not known. */
  readonly limit: number | null;
  /** peer / ours for times, ours / peer for rates: above 1, ours is better. */
  readonly ratioToPeer: number | null;
  /** The same against the limit: below 1, there is room. */
  readonly ratioToLimit: number | null;
  /** The `ratioToLimit` that is wanted at least. null: there is no goal. */
  readonly goal: number | null;
  /** Whether it was reached. null: there is no goal, or the ratio is not known. */
  readonly met: boolean | null;
  /** What is known of the reason, where the goal is missed. */
  readonly why: string | null;
  /** The figure comes from stand-in GPUs. */
  readonly simulated: boolean;
  /** What ours, peer and limit are, for the reader. */
  readonly note: string;
}

export type Direction = "lower" | "higher";

/** Computes the ratios, and whether the goal was met. */
export function benchRow(
  row: Omit<BenchRow, "ratioToPeer" | "ratioToLimit" | "met" | "why"> & {
    readonly better: Direction;
    /** Why the goal may be missed. */
    readonly why?: string;
  },
): BenchRow {
  const { better, why = null, ...rest } = row;
  const ratio = (other: number | null): number | null => {
    if (other === null || other <= 0 || row.ours <= 0) return null;
    return better === "lower" ? other / row.ours : row.ours / other;
  };
  const ratioToLimit = ratio(row.limit);
  const met = row.goal === null || ratioToLimit === null ? null : ratioToLimit >= row.goal;
  return { ...rest, ratioToPeer: ratio(row.peer), ratioToLimit, met, why: met === false ? why : null };
}

/** Value at a share of the sorted values (nearest rank). */
export function percentile(values: readonly number[], share: number): number {
  if (values.length === 0) throw new RangeError("no values");
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] as number;
}

const number = (value: number | null, unit = ""): string =>
  value === null ? "-" : `${Number(value.toPrecision(3))}${unit === "" ? "" : ` ${unit}`}`;

/** A table for people. */
export function formatRows(rows: readonly BenchRow[]): string {
  const cells = rows.map((row) => [
    row.subject,
    row.metric,
    number(row.ours, row.unit),
    number(row.peer, row.unit),
    row.ratioToPeer === null ? "-" : `${number(row.ratioToPeer)}x`,
    number(row.limit, row.unit),
    number(row.ratioToLimit),
    row.goal === null ? "-" : `>= ${number(row.goal)}`,
    row.met === null ? "-" : row.met ? "yes" : "no",
    row.simulated ? "simulated" : "",
  ]);
  const table = [["subject", "metric", "ours", "peer", "to peer", "limit", "to limit", "goal", "met", ""], ...cells];
  const widths = (table[0] as string[]).map((_, column) =>
    Math.max(...table.map((line) => (line[column] as string).length)),
  );
  const lines = table.map((line) =>
    line
      .map((cell, column) => cell.padEnd(widths[column] as number))
      .join("  ")
      .trimEnd(),
  );
  const notes = [...new Set(rows.map((row) => `${row.subject}: ${row.note}`))];
  const misses = rows.flatMap(({ subject, metric, ratioToLimit, goal, met, why }) => {
    if (met !== false) return [];
    const reason = why === null ? "" : ` Why: ${why}.`;
    return [`Missed: ${subject}, ${metric}: ${number(ratioToLimit)} of the limit, not ${number(goal)}.${reason}`];
  });
  return `${lines.join("\n")}\n\n${[...misses, ...notes].join("\n")}\n`;
}
