/** The part of node 0's summary that is about all nodes of the run. */
import type { Summary } from "./summary.js";

/** What one node has reported. */
export interface NodeResult {
  readonly host: string;
  /** On that node; null: not known. */
  readonly folder: string | null;
  /** null: it sent none, because it is gone. */
  readonly report: Summary | null;
}

export interface NodesSummary {
  readonly count: number;
  /** By number of the node. `folder` has its events.jsonl and trace.json. */
  readonly each: readonly (Pick<NodeResult, "host" | "folder"> & {
    readonly node: number;
    readonly summary: Omit<Summary, "nodes"> | null;
  })[];
  /** Over the nodes that have reported. */
  readonly totals: {
    readonly reported: number;
    readonly gpus: number;
    readonly ranks: number;
    readonly engines: number;
    readonly weightChecksumsPassed: number;
    readonly weightChecksumsFailed: number;
    readonly maxLogprobDifference: number | null;
    readonly left: { readonly processes: number | null; readonly deviceBytes: number | null };
  };
}

export function nodesSummary(results: readonly NodeResult[]): NodesSummary {
  const reports = results.flatMap(({ report }) => (report === null ? [] : [report]));
  const add = (figure: (summary: Summary) => number): number => reports.reduce((sum, one) => sum + figure(one), 0);
  /** null as soon as one is not known, that of a node which is gone too. */
  const addKnown = (figure: (summary: Summary) => number | null): number | null =>
    results.reduce<number | null>((sum, { report }) => {
      const value = report === null ? null : figure(report);
      return sum === null || value === null ? null : sum + value;
    }, 0);
  const differences = reports.flatMap(({ checks }) => checks.maxLogprobDifference ?? []);
  return {
    count: results.length,
    each: results.map(({ host, folder, report }, node) => ({ node, host, folder, summary: report })),
    totals: {
      reported: reports.length,
      gpus: add(({ topology }) => topology.gpus),
      ranks: add(({ topology }) => topology.ranks),
      engines: add(({ topology }) => topology.engines),
      weightChecksumsPassed: add(({ checks }) => checks.weightChecksumsPassed),
      weightChecksumsFailed: add(({ checks }) => checks.weightChecksumsFailed),
      maxLogprobDifference: differences.length === 0 ? null : Math.max(...differences),
      left: {
        processes: addKnown(({ left }) => left?.processes ?? null),
        deviceBytes: addKnown(({ left }) => left?.deviceBytes ?? null),
      },
    },
  };
}
