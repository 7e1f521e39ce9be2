"""`baton grpo` on real GPUs: the recipes of SmolLM2-135M-Instruct learn sums, full and with LoRA.

    grpo_check.py FOLDER --model CHECKPOINT [--recipe NAME ...] [--batches N] [--set KEY=VALUE ...]
        [--gpus N] [--engines M] [--simulated]

On stand-ins the recipe of the demo learns. The recipes run side by side on the same GPUs. Each leaves metrics.jsonl,
TensorBoard's files and Baton's reports in FOLDER/NAME; its curve is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from run_support import ROOT, Node, add_node_options, node_of
from support import Checks

RECIPES = ("smollm2-135m", "smollm2-135m-lora")
RUN_SECONDS = 540


class Training:
    """One `baton grpo`."""

    def __init__(
        self, folder: Path, recipe: str, model: Path | None, batches: int, more: list[str], node: Node
    ) -> None:
        self.name, self.folder = recipe, folder / recipe
        self.folder.mkdir(parents=True, exist_ok=True)
        self.command = ["node", str(ROOT / "dist/cli/main.js"), "grpo", str(ROOT / "examples" / f"{recipe}.yaml")]
        self.command += ["--log", "--out", str(self.folder)]
        values = [] if model is None else [f"engine.model={model}"]
        values.append(f"grpo.batches={batches}")
        if node.gpus > 1:
            self.command += ["--ranks", str(node.gpus)]
            values += [f"gpus.count={node.gpus}", f"engine.engines={node.engines}"]
            values += [f"engine.tensorParallel={node.tensor_parallel}"]
        for value in [*values, *more]:
            self.command += ["--set", value]
        self.began = time.monotonic()
        with (self.folder / "output.log").open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(max(1.0, seconds - (time.monotonic() - self.began)))
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(60)
            return 124

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def judge(checks: Checks, run: Training, batches: int, node: Node) -> None:
    status = run.wait(RUN_SECONDS)
    checks.figure(f"{run.name}: seconds", time.monotonic() - run.began)
    print("    ", " ".join(run.command))
    if status != 0:
        print((run.folder / "output.log").read_text(errors="replace")[-6000:])
    checks.that(f"{run.name}: ends in good order", status == 0, f"exit status {status}")
    lines = run.lines()
    held_out = [(line["step"], line["held_out/mean"]) for line in lines if "held_out/mean" in line]
    rewards = [(line["batch"], line["reward/mean"]) for line in lines if "reward/mean" in line]
    steps = [line for line in lines if "loss" in line]
    checks.that(f"{run.name}: every batch", len(rewards) == batches, f"{len(rewards)} of {batches}")
    least = min(100, 2 * batches)  # two passes over each batch
    checks.that(f"{run.name}: {least} optimizer steps", len(steps) >= least, str(len(steps)))
    for step, value in held_out:
        print(f"     {run.name}: held-out after {step} steps: {value:.4f}")
    for begin in range(0, len(rewards), 10):
        part = [value for _, value in rewards[begin : begin + 10]]
        print(f"     {run.name}: reward of batches {begin + 1} to {begin + len(part)}: {sum(part) / len(part):.4f}")
    for name in ("policy/logprobDifferenceMean", "policy/logprobDifferenceMax", "policy/kl", "policy/entropy"):
        values = [line[name] for line in steps if line.get(name) is not None]
        if values:
            checks.figure(f"{run.name}: {name}, mean of steps", sum(values) / len(values))
            checks.figure(f"{run.name}: {name}, largest of steps", max(values))
    first = [line["policy/clipFraction"] for line in steps if line["iteration"] == 1]
    later = [line["policy/clipFraction"] for line in steps if line["iteration"] > 1]
    checks.that(f"{run.name}: nothing is clipped in the first pass", max(first, default=1) == 0, str(max(first)))
    checks.that(f"{run.name}: something is in later ones", max(later, default=0) > 0)
    summary = json.loads((run.folder / "summary.json").read_text())
    found = summary["checks"]
    checks.that(f"{run.name}: simulated or not", summary["simulated"] is node.simulated)
    good = found["weightChecksumsPassed"] > 0 and found["weightChecksumsFailed"] == 0
    checks.that(f"{run.name}: checksums", good, str(found))
    print(f"     {run.name}: {found} {summary['gpus']}")
    for phase in summary["phases"]:
        print(f"     {run.name}: {phase}")
    if len(held_out) >= 2:
        before, after = held_out[0][1], held_out[-1][1]
        problems = 512
        error = 2 * math.sqrt((before * (1 - before) + after * (1 - after)) / problems)
        risen = after - before
        checks.figure(f"{run.name}: held-out before", before)
        checks.figure(f"{run.name}: held-out after", after)
        checks.that(f"{run.name}: held-out accuracy rises", risen >= 0.1 and risen > error, f"{before} -> {after}")
    else:
        checks.that(f"{run.name}: evaluations before and after", False, str(held_out))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    add_node_options(parser)
    parser.add_argument("--recipe", action="append", help="default: full and LoRA, side by side")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], help="more of the recipe, for all of them")
    parser.add_argument("--json")
    options = parser.parse_args()
    checks = Checks("grpo")
    node = node_of(options)
    model = options.model.resolve() if options.model else None
    recipes = options.recipe or (["demo"] if node.simulated else RECIPES)
    runs = [Training(options.folder.resolve(), recipe, model, options.batches, options.set, node) for recipe in recipes]
    for run in runs:
        checks.run(judge, checks, run, options.batches, node)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
