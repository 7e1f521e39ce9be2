# /// script
# dependencies = ["matplotlib"]
# ///
"""Draws what test/gpu/trl_check.py found: reward, and seconds of each step, of both trainers.

    uv run scripts/trl_picture.py OUT.svg NAME=FOLDER/report.json ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "baton"  # the same bytes for the same numbers
import matplotlib.pyplot as plt

#: The first steps compile and capture.
FIRST_STEP = 4


def main(out: str, runs: list[str]) -> None:
    figure, (rewards, seconds) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for run in runs:
        name, path = run.split("=", 1)
        report = json.loads(Path(path).read_text())
        trained = [(line["step"], line["reward"]) for line in report["log"] if "reward" in line]
        (curve,) = rewards.plot(*zip(*trained, strict=True), marker="o", label=name)
        held_out = [(line["step"], line["eval_reward"]) for line in report["log"] if "eval_reward" in line]
        rewards.plot(*zip(*held_out, strict=True), "s", color=curve.get_color(), label=f"{name}: held out")
        steps = [(number, step["whole"]) for number, step in enumerate(report["steps"]) if number >= FIRST_STEP]
        seconds.plot(*zip(*steps, strict=True), marker=".", color=curve.get_color(), label=name)
    rewards.set(xlabel="optimizer step", ylabel="share of sums solved", ylim=(0, 1))
    seconds.set(xlabel="optimizer step", ylabel="seconds", ylim=(0, None))
    for axes in (rewards, seconds):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
