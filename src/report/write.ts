/** Writes summary.json and trace.json of a run. */
import { renameSync, writeFileSync } from "node:fs";
import type { RunEvent } from "./events.js";
import { ledgerFigures } from "./ledger.js";
import { type NodeResult, nodesSummary } from "./nodes.js";
import { type Summary, summary } from "./summary.js";
import { trace } from "./trace.js";

interface Folder {
  /** Path of a file in DIR. */
  file(name: string): string;
}

export function writeReports(events: readonly RunEvent[], folder: Folder): Summary {
  const figures = summary(events, ledgerFigures(events));
  writeSummary(figures, folder);
  write(folder.file("trace.json"), JSON.stringify(trace(events)));
  return figures;
}

/** On node 0, when the others have reported. */
export function addNodes(figures: Summary, results: readonly NodeResult[], folder: Folder): Summary {
  const whole = { ...figures, nodes: nodesSummary(results) };
  writeSummary(whole, folder);
  return whole;
}

function writeSummary(figures: Summary, folder: Folder): void {
  write(folder.file("summary.json"), `${JSON.stringify(figures, null, 2)}\n`);
}

/** A reader sees the old file or the whole new one. */
function write(path: string, text: string): void {
  const draft = `${path}.new`;
  writeFileSync(draft, text);
  renameSync(draft, path);
}
