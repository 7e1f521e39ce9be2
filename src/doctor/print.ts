/** Findings for people: a line each, and beneath what is not well, what was found and what to do. */
import { styleText } from "node:util";
import { type Finding, SUBJECTS, type Subject, type Verdict } from "./finding.js";

const TITLES: Readonly<Record<Subject, string>> = {
  gpus: "GPUs and driver",
  links: "Links",
  environment: "Environment",
  host: "Host",
  versions: "Versions",
  compilers: "Compilers",
  model: "Model",
};

const MARKS: Readonly<Record<Verdict, { mark: string; style: "green" | "yellow" | "red" | "cyan" }>> = {
  ok: { mark: "ok     ", style: "green" },
  warning: { mark: "warning", style: "yellow" },
  problem: { mark: "PROBLEM", style: "red" },
  unknown: { mark: "unknown", style: "cyan" },
};

const INDENT = " ".repeat(12);

export interface PrintOptions {
  readonly colour: boolean;
  /** How each GPU reaches the others: a name and a cell for each GPU. Empty: not shown. */
  readonly matrix: readonly (readonly string[])[];
}

export function describeFindings(findings: readonly Finding[], { colour, matrix }: PrintOptions): string {
  const paint = (style: "green" | "yellow" | "red" | "cyan" | "bold" | "dim", text: string): string =>
    colour ? styleText(style, text) : text;
  const lines: string[] = [];
  for (const subject of SUBJECTS) {
    const here = findings.filter((finding) => finding.subject === subject);
    if (here.length === 0) continue;
    lines.push(paint("bold", TITLES[subject]));
    for (const { verdict, code, message, expected, found, action } of here) {
      const { mark, style } = MARKS[verdict];
      const good = verdict === "ok";
      const head = good || code === "" ? message : `${message} [${code}]`;
      lines.push(`  ${paint(style, mark)}  ${head}`);
      if (good && found !== "") lines.push(`${INDENT}${paint("dim", found)}`);
      if (good) continue;
      if (expected !== "") lines.push(`${INDENT}expected: ${expected}`);
      if (found !== "") lines.push(`${INDENT}found:    ${found}`);
      if (action !== "") lines.push(`${INDENT}action:   ${action}`);
    }
    if (subject === "links") lines.push(...table(matrix).map((line) => `${INDENT}${paint("dim", line)}`));
    lines.push("");
  }
  lines.push(closing(findings, paint));
  return `${lines.join("\n")}\n`;
}

function closing(
  findings: readonly Finding[],
  paint: (style: "green" | "red" | "bold", text: string) => string,
): string {
  const count = (verdict: Verdict): number => findings.filter((finding) => finding.verdict === verdict).length;
  const parts = (["problem", "warning", "unknown", "ok"] as const)
    .filter((verdict) => count(verdict) > 0)
    .map(
      (verdict) =>
        `${count(verdict)} ${verdict}${verdict !== "ok" && verdict !== "unknown" && count(verdict) > 1 ? "s" : ""}`,
    );
  const problems = count("problem");
  const say = problems === 0 ? paint("green", "A run can start here") : paint("red", "A run would stop here");
  return `${say}: ${parts.join(", ")}.`;
}

function table(rows: readonly (readonly string[])[]): string[] {
  const [first] = rows;
  if (first === undefined) return [];
  const header = ["", ...rows.map(([name]) => name ?? "")];
  const all = [header, ...rows];
  const widths = header.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  return all.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
}
