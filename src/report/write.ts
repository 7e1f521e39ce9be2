/** Writes summary.json and trace.json of a run. */
import { renameSync, writeFileSync } from "node:fs";
import type { RunEvent } from "./events.js";
import { ledgerFigures } from "./ledger.js";
import { type Summary, summary } from "./summary.js";
import { trace } from "./trace.js";

/** @param folder gives the path of a file in DIR */
export function writeReports(events: readonly RunEvent[], folder: { file(name: string): string }): Summary {
  const figures = summary(events, ledgerFigures(events));
  write(folder.file("summary.json"), `${JSON.stringify(figures, null, 2)}\n`);
  write(folder.file("trace.json"), JSON.stringify(trace(events)));
  return figures;
}

/** A reader sees the old file or the whole new one. */
function write(path: string, text: string): void {
  const draft = `${path}.new`;
  writeFileSync(draft, text);
  renameSync(draft, path);
}
