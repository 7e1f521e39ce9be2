# /// script
# dependencies = ["matplotlib"]
# ///
"""Draws reward and held-out accuracy of runs of `baton grpo` from their metrics.

    uv run scripts/reward_picture.py OUT.svg NAME=FOLDER/metrics.jsonl ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "baton"  # the same bytes for the same numbers
import matplotlib.pyplot as plt

WINDOW = 10  # batches


def main(out: str, runs: list[str]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for run in runs:
        name, path = run.split("=", 1)
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
        held_out = [(line["step"], line["held_out/mean"]) for line in lines if "held_out/mean" in line]
        rewards = [(line["step"], line["reward/mean"]) for line in lines if "reward/mean" in line]
        (curve,) = axes.plot(*zip(*held_out, strict=True), marker="o", label=f"{name}: held-out, greedy")
        smooth = [
            (rewards[end - 1][0], sum(value for _, value in rewards[end - WINDOW : end]) / WINDOW)
            for end in range(WINDOW, len(rewards) + 1)
        ]
        label = f"{name}: reward in training, mean of {WINDOW} batches"
        axes.plot(*zip(*smooth, strict=True), color=curve.get_color(), linestyle=":", label=label)
    axes.set(xlabel="optimizer step", ylabel="share of sums solved", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
