"""The tables of many.sh."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def report(found: dict[str, Any], work: Path) -> tuple[str, bool]:
    """Markdown, and whether a check has failed or a part has not come to its end."""
    mark = " (simulated: stand-in GPUs say nothing about speed)" if found["simulated"] else ""
    lines = [f"# {found['gpus']} GPUs{mark}", "", "| part | seconds | ended | checks passed | failed |"]
    lines.append("|---|---|---|---|---|")
    failures = [result for result in found["bench"].get("results", []) if result["failure"]]
    problems = [told(result) for result in failures if result["part"]["side"] == "ours"]
    peers = [told(result) for result in failures if result["part"]["side"] == "stock"]
    for part in found["parts"]:
        checks = part["checks"] or {"passed": [], "failed": []}
        ended = "in good order" if part["status"] == 0 else str(part["status"])
        counts = f"{len(checks['passed'])} | {len(checks['failed'])}" if part["checks"] else "- | -"
        lines.append(f"| {part['name']} | {part['seconds']:.0f} | {ended} | {counts} |")
        problems += [f"{part['name']}: {what}" for what in checks["failed"]]
        # A bench that ends with 1 has a part that failed, which its results name.
        explained = checks["failed"] or (part["status"] == 1 and not part["checks"] and failures)
        if part["status"] != 0 and not explained:
            problems.append(f"{part['name']}: {ended}")
    lines += ["", *(f"Not run: {what}." for what in found["notRun"])]
    lines += [f"FAILED: {problem}" for problem in problems]
    lines += [f"No peer: {peer}" for peer in peers]
    lines += goals(found["bench"])
    table = work / "bench" / "bench.md"
    if found["bench"]:
        lines += ["", "## The bench", "", table.read_text().strip()]
    lines += figures(found["parts"])
    return "\n".join(lines) + "\n", bool(problems)


def told(result: dict[str, Any]) -> str:
    return f"{result['part']['name']}: {result['failure']['code']}: {result['failure']['message']}"


def goals(bench: dict[str, Any]) -> list[str]:
    """Met and missed, where something was compared."""
    judged = [row for row in bench.get("rows", []) if row["met"] is not None]
    if not judged:
        return []
    lines = ["", "## Goals", "", "| what | goal | |", "|---|---|---|"]
    for row in judged:
        verdict = "met" if row["met"] else f"**missed**: {row['missedBy']}"
        lines.append(f"| {row['subject']}, {row['shape']}: {row['metric']} | {row['goal']} | {verdict} |")
    return lines


def figures(parts: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for part in parts:
        checks = part["checks"]
        if checks and checks["figures"]:
            lines += ["", f"## {checks['name']}", "", "| figure | |", "|---|---|"]
            lines += [f"| {what} | {value:g} |" for what, value in checks["figures"].items()]
    return lines
