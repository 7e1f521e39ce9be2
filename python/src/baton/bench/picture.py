"""Draws a bench from its JSON: how many times faster than the peer, and where the time of a handoff goes.

    python -m baton.bench.picture bench.json bench.svg

Needs matplotlib.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OURS, PEER, MISSED = "#457b9d", "#9aa5b1", "#e07a5f"
#: Steps of a handoff in their order: of a run of Baton's (phases of the controller), and of the scripted peer.
RUN_STEPS = ("arrive", "release", "wake", "plan", "sync", "cache", "generate", "sleep", "resume")
STOCK_STEPS = ("offload", "wake weights", "transfer", "wake cache", "generate", "sleep", "reload")
COLOURS = {
    "arrive": "#9aa5b1",
    "release": "#e07a5f",
    "offload": "#e07a5f",
    "wake": "#f2cc8f",
    "wake weights": "#f2cc8f",
    "plan": "#d9d9d9",
    "sync": "#3d405b",
    "transfer": "#3d405b",
    "cache": "#f2a65a",
    "wake cache": "#f2a65a",
    "generate": "#81b29a",
    "sleep": "#6d6875",
    "resume": "#457b9d",
    "reload": "#457b9d",
}


def main(source: str, target: str) -> None:
    """Writes the picture; what was not measured is not in it."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("svg")
    from matplotlib import pyplot as plt  # pyright: ignore[reportMissingImports]

    bench = json.loads(Path(source).read_text())
    compared = [row for row in bench["rows"] if row["ratioToPeer"] is not None]
    handoffs = [result for result in bench["results"] if result["part"]["subject"] == "handoff"]
    bars = [bar for bar in map(_steps, handoffs) if bar[1]]
    heights = [max(2.0, 0.28 * len(compared)), max(1.2, 0.4 * len(bars))]
    figure, (ratios, steps) = plt.subplots(
        2, 1, figsize=(11, 1.5 + sum(heights)), height_ratios=heights, layout="constrained"
    )
    _draw_ratios(ratios, compared)
    _draw_steps(steps, bars)
    heading = bench["heading"]
    counted = [(f"{one['gpus']} x " if one["gpus"] > 1 else "") + str(one["gpu"]) for one in heading["machines"]]
    machines = ", ".join(dict.fromkeys(counted)) or "no GPU"
    simulated = " (simulated)" if any(machine["simulated"] for machine in heading["machines"]) else ""
    figure.suptitle(f"baton bench, {machines}{simulated}, {heading['date'][:10]}", fontsize=11)
    figure.savefig(target, metadata={"Date": None})


def _draw_ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.set_title("times as good as the peer (p50); a line marks the goal", fontsize=9)
    if not rows:
        axes.text(0.5, 0.5, "nothing was compared", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    names = [f"{row['subject']}: {row['metric']} ({row['shape']})" for row in rows]
    values = [row["ratioToPeer"] for row in rows]
    places = range(len(rows))
    axes.barh(places, values, color=[MISSED if row["met"] is False else OURS for row in rows], height=0.7)
    for place, row in zip(places, rows, strict=True):
        axes.text(row["ratioToPeer"], place, f" {row['ratioToPeer']:.3g}x", va="center", fontsize=7)
        if row["goalTimesPeer"] is not None:
            axes.plot([row["goalTimesPeer"]] * 2, [place - 0.4, place + 0.4], color="black")
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=PEER, linewidth=1)


def _steps(result: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Name of a handoff's bar, and its steps with the median milliseconds of the warm cycles."""
    part = result["part"]
    ours = part["side"] == "ours"
    gpus = part["layout"]["gpus"]
    where = "" if gpus == 1 else f", {gpus} GPUs"
    name = f"{part['variant']} {part['shape']}{where}, {'Baton' if ours else 'peer'}"
    if ours:
        found = (result["run"] or {}).get("phases", {})
        samples = {step: found.get(step, []) for step in RUN_STEPS}
    else:
        found = (result["record"] or {}).get("samples", {})
        samples = {step: found.get(f"{step} seconds", []) for step in STOCK_STEPS}
    warm = {step: values[1:] for step, values in samples.items()}
    return name, [(step, 1e3 * statistics.median(values)) for step, values in warm.items() if values]


def _draw_steps(axes: Any, bars: list[tuple[str, list[tuple[str, float]]]]) -> None:
    axes.set_title("one handoff, there and back, ms (p50 of each step)", fontsize=9)
    if not bars:
        axes.text(0.5, 0.5, "no handoff was measured", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    longest = max(sum(length for _, length in steps) for _, steps in bars)
    for place, (_, steps) in enumerate(bars):
        at = 0.0
        for step, length in steps:
            axes.barh(place, length, left=at, color=COLOURS[step], edgecolor="white", linewidth=0.5)
            if length > 0.06 * longest:
                axes.text(at + length / 2, place, step, ha="center", va="center", fontsize=7)
            at += length
        axes.text(at, place, f" {at:.0f} ms", va="center", fontsize=7)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.invert_yaxis()


if __name__ == "__main__":
    main(*sys.argv[1:3])
