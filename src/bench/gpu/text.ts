/** Figures and tables for people, in Markdown. */
import type { Spread } from "./row.js";

export const number = (value: number | null | undefined): string => {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0";
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
};

/** p50, and p95 where there were several; the cold one before them. */
export function cell(spread: Spread | null): string {
  if (spread === null) return "-";
  const warm = spread.p95 === null ? number(spread.p50) : `${number(spread.p50)} / ${number(spread.p95)}`;
  return spread.first === null ? warm : `${number(spread.first)}; ${warm}`;
}

/** It reads as it is, and goes into a document as it is. */
export function table(titles: readonly string[], lines: readonly (readonly string[])[]): string {
  const widths = titles.map((title, column) =>
    Math.max(title.length, ...lines.map((line) => (line[column] as string).length)),
  );
  const line = (parts: readonly string[]): string =>
    `| ${parts.map((part, column) => part.padEnd(widths[column] as number)).join(" | ")} |`;
  const rule = `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`;
  return [line(titles), rule, ...lines.map(line)].join("\n");
}
