"""Draws one handoff of a real run, from its events.jsonl, as docs/handoff.svg.

    python scripts/handoff_picture.py RUN_FOLDER/events.jsonl docs/handoff.svg [HANDOFF]

Needs matplotlib. HANDOFF counts from 1; the default is the third, when everything is warm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import itertools

from matplotlib import pyplot as plt

COLOURS = {
    "arrive": "#9aa5b1",
    "release": "#e07a5f",
    "wake": "#f2cc8f",
    "plan": "#d9d9d9",
    "sync": "#3d405b",
    "cache": "#f2a65a",
    "generate": "#81b29a",
    "sleep": "#6d6875",
    "resume": "#457b9d",
    "train": "#a8c5da",
}
#: What a process does, in the colour of the phase it belongs to.
WORK = {
    "releasing": "release",
    "releasingAll": "release",
    "exporting": "sync",
    "syncing": "sync",
    "verifying": "sync",
    "wakingWeights": "wake",
    "wakingCache": "cache",
    "generating": "generate",
    "sleeping": "sleep",
    "resuming": "resume",
    "train": "train",
}


def main(events_path: str, out: str, handoff: int) -> None:
    """Draws the phases, one bar per process, and the memory of GPU 0."""
    events = [json.loads(line) for line in Path(events_path).read_text().splitlines()]
    started = events[0]
    phases = [event for event in events if event["type"] == "phase"]
    inside = [
        (phase, following)
        for phase, following in itertools.pairwise(phases)
        # The next handoff begins with `arrive`, which still carries this one's number.
        if phase["handoff"] == handoff and phase["to"] not in ("train", "arrive", "finish", "end")
    ]
    if not inside:
        raise SystemExit(f"no handoff {handoff} in {events_path}")
    begin, end = inside[0][0]["monotonicMs"], inside[-1][1]["monotonicMs"]
    margin = 0.12 * (end - begin)

    work = [event for event in events if event["type"] == "work" and event["name"] in WORK]
    names = sorted({event["process"] for event in work}, key=_order)
    figure, (axes, memory) = plt.subplots(
        2,
        1,
        figsize=(10, 1.6 + 0.24 * len(names)),
        sharex=True,
        height_ratios=[len(names) + 2, 3],
        layout="constrained",
    )
    for phase, following in inside:
        start = phase["monotonicMs"] - begin
        length = following["monotonicMs"] - phase["monotonicMs"]
        axes.barh(0, length, left=start, color=COLOURS[phase["to"]], edgecolor="white")
        if length > 0.05 * (end - begin):
            axes.text(start + length / 2, 0, phase["to"], ha="center", va="center", fontsize=8)
    for event in work:
        if event["startMs"] < end + margin and event["startMs"] + event["durationMs"] > begin - margin:
            axes.barh(
                1 + names.index(event["process"]),
                event["durationMs"],
                left=event["startMs"] - begin,
                color=COLOURS[WORK[event["name"]]],
            )
    axes.set_yticks(range(len(names) + 1), ["phase", *names], fontsize=8)
    axes.invert_yaxis()
    topology = started["topology"]
    simulated = "stand-in GPUs (simulated)" if started["simulated"] else "GPUs"
    axes.set_title(
        f"One handoff: {topology['ranks']} ranks, {topology['engines']} x TP={topology['tensorParallel']} engines"
        f" on {topology['gpus']} {simulated}",
        fontsize=10,
    )

    samples = [event for event in events if event["type"] == "memory"]
    times = [event["monotonicMs"] - begin for event in samples]
    memory.step(times, [event["usedBytes"][0] / 2**20 for event in samples], where="post", color="#3d405b")
    memory.fill_between(
        times, [event["usedBytes"][0] / 2**20 for event in samples], step="post", color="#3d405b", alpha=0.2
    )
    memory.set_ylim(0, 1.25 * max(event["usedBytes"][0] for event in samples) / 2**20)
    memory.set_ylabel("GPU 0, MiB", fontsize=8)
    memory.set_xlabel("ms")
    memory.set_xlim(-margin, end - begin + margin)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
        memory.spines[side].set_visible(False)
    figure.savefig(out)


def _order(process: str) -> tuple[int, list[int]]:
    kind = 0 if process.startswith("rank") else 1
    numbers = [int(part) for part in process.replace("worker ", "").split() if part.isdigit()]
    return kind, numbers if kind == 0 else ([numbers[-1], 0] if len(numbers) == 1 else [numbers[-1], 1 + numbers[0]])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3)
