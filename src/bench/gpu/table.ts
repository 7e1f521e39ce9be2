/** The table for people, in Markdown: it reads as it is, and goes into a document as it is. */
import type { CommandStamp, Machine, PartResult } from "./results.js";
import type { GpuRow } from "./row.js";
import { cell, number, table } from "./text.js";

/** Everything that a reader must know to judge the rows. */
export interface Heading {
  readonly date: string;
  readonly baton: string;
  readonly node: string;
  readonly machines: readonly Machine[];
  readonly versions: Readonly<Record<string, readonly string[]>>;
  readonly graphs: readonly string[];
  readonly commands: readonly CommandStamp[];
}

export function headingOf(results: readonly PartResult[], baton: string, now: Date): Heading {
  const machines = new Map<string, Machine>();
  const versions = new Map<string, Set<string>>();
  for (const { record } of results) {
    const machine = record?.machine;
    if (machine) machines.set(JSON.stringify(machine), machine);
    for (const [name, version] of Object.entries(record?.versions ?? {})) {
      if (version !== null) versions.set(name, (versions.get(name) ?? new Set()).add(version));
    }
  }
  return {
    date: now.toISOString(),
    baton,
    node: process.version,
    machines: [...machines.values()],
    versions: Object.fromEntries([...versions].map(([name, found]) => [name, [...found]])),
    graphs: [...new Set(results.filter(withVllm).map(({ graphs }) => graphs))],
    commands: [...new Map(results.map(({ command }) => [command.id, command])).values()],
  };
}

/** Stand-in GPUs run the small engine, which has no CUDA graphs. */
const withVllm = ({ part, record }: PartResult): boolean =>
  part.subject !== "offload" && record?.machine?.simulated !== true;

const GRAPHS_TEXT: Readonly<Record<string, string>> = {
  vllm: "CUDA graphs as vLLM makes them by default",
  decode: "CUDA graphs for decoding only, nothing compiled",
  none: "no CUDA graphs",
};

export function headingLines(heading: Heading): string[] {
  const machines = heading.machines.map(({ gpu, driver, totalBytes, simulated, gpus }) =>
    simulated
      ? `${gpus === 1 ? "a stand-in GPU" : `${gpus} stand-in GPUs`} (simulated), ${size(totalBytes)}`
      : `${gpus === 1 ? "" : `${gpus} x `}${gpu ?? "unknown GPU"} (${size(totalBytes)}), driver ${driver ?? "unknown"}`,
  );
  const versions = Object.entries(heading.versions).map(([name, found]) => `${name} ${found.join(" and ")}`);
  const lines = [
    `${heading.date.slice(0, 10)}, ${machines.join("; ") || "no GPU figures"}; gpu-baton ${heading.baton}, Node.js ` +
      `${heading.node}${versions.length > 0 ? `, ${versions.join(", ")}` : ""}.`,
  ];
  if (heading.graphs.length > 0) {
    lines.push(`${heading.graphs.map((graphs) => GRAPHS_TEXT[graphs] ?? graphs).join("; ")}.`);
  }
  if (heading.commands.length > 1) {
    lines.push(
      `Rows come from ${heading.commands.length} commands` +
        `${heading.machines.length === 1 ? " on the same GPU" : ", ON DIFFERENT GPUS"}; ours and its peer stand in one ` +
        "row only where they ran on the same GPU.",
    );
  }
  if (heading.machines.some(({ simulated }) => simulated)) {
    lines.push("Simulated: stand-in GPUs say nothing about the speed of real ones, so nothing is compared.");
  }
  return lines;
}

const size = (bytes: number): string => `${Number((bytes / 2 ** 30).toFixed(1))} GiB`;
const COLUMNS = ["subject", "shape", "metric", "unit", "ours", "peer", "to peer", "limit", "of limit", "goal", ""];

/** A p95 of fewer is hardly more than the largest. */
const CYCLES_OF_A_P95 = 10;

/** One table; cells are "first; p50 / p95". */
export function markdownTable(rows: readonly GpuRow[]): string {
  const cells = rows.map((row) => [
    row.subject,
    row.shape,
    row.metric,
    row.unit,
    row.failure === null ? cell(row.ours) : "FAILED",
    cell(row.peer),
    row.ratioToPeer === null ? "-" : `${number(row.ratioToPeer)}x`,
    number(row.limit),
    number(row.ratioToLimit),
    row.goal ?? "",
    verdict(row),
  ]);
  return table(COLUMNS, cells);
}

/** What stands in a cell, and of how many cycles. */
export function cellsLine(rows: readonly GpuRow[]): string {
  const counts = rows.flatMap(({ ours, peer }) =>
    [ours, peer].flatMap((side) => (side === null || side.p95 === null ? [] : [side.cycles])),
  );
  const cells = "Cells: first (cold); p50 / p95 of the later cycles";
  if (counts.length === 0) return `${cells}.`;
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const few = least < CYCLES_OF_A_P95 ? ": too few for a p95 that means something" : "";
  return `${cells}, which are ${least === most ? least : `${least} to ${most}`}${few}.`;
}

function verdict(row: GpuRow): string {
  if (row.failure !== null) return row.failure.replaceAll("|", "/").slice(0, 160);
  const simulated = row.simulated ? "simulated" : "";
  if (row.met === null) return simulated;
  return row.met ? "met" : `missed: ${row.missedBy}`;
}

/** By how much goals are missed, and why where that is known. */
export function missesOf(rows: readonly GpuRow[]): string[] {
  return rows
    .filter(({ met }) => met === false)
    .map(({ subject, shape, metric, goal, missedBy, why }) => {
      const reason = why === null ? "" : ` Why: ${why}.`;
      return `Missed: ${subject}, ${shape}, ${metric}: ${missedBy} (${goal}).${reason}`;
    });
}

/** What ours, peer and limit are, once for each kind of row. */
export function notesOf(rows: readonly GpuRow[]): string[] {
  const anywhere = (subject: string): string => subject.replace(/, \d+ GPUs.*$/, "");
  return [...new Set(rows.map(({ subject, metric, note }) => `- ${anywhere(subject)}, ${metric}: ${note}.`))];
}
