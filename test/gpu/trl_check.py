"""BatonGRPOTrainer on one real GPU, and TRL's own trainer with vLLM colocated on the same settings.

    trl_check.py FOLDER --model CHECKPOINT [--zero 2] [--steps 60]

SmolLM2-135M-Instruct learns sums by both, one after the other. Needs vLLM, trl 1.16 and datasets. Each leaves its log
in FOLDER/NAME/report.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from run_support import HERE, Run, write_recipe
from support import GIB, Checks

RUN_SECONDS = 280


def words(options: argparse.Namespace, trainer: str, out: Path) -> list[str]:
    return [
        *(str(HERE / "trl_train.py"), "--model", str(options.model), "--out", str(out), "--trainer", trainer),
        *("--zero", str(options.zero), "--steps", str(options.steps)),
    ]


def train_with_baton(checks: Checks, options: argparse.Namespace) -> None:
    folder = options.folder / "baton"
    run = Run(write_recipe(folder, options.model), words(options, "baton", folder))
    status = run.wait(RUN_SECONDS)
    if status != 0:
        print(run.output())
    checks.that("baton: ends in good order", status == 0, f"exit status {status}")
    summary = run.summary() or {}
    found = summary.get("checks", {})
    checks.that("baton: checksums", found.get("weightChecksumsPassed", 0) > 0, str(found))
    checks.that("baton: none fails", found.get("weightChecksumsFailed") == 0, str(found))
    print(f"     baton: {found} {summary.get('gpus')}")
    judge(checks, "baton", folder, options.steps)


def train_with_trl(checks: Checks, options: argparse.Namespace) -> None:
    folder = options.folder / "trl"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    with (folder / "output.log").open("w") as log:
        done = subprocess.run(
            [*command, *words(options, "trl", folder)], stdout=log, stderr=log, timeout=RUN_SECONDS, check=False
        )
    if done.returncode != 0:
        print((folder / "output.log").read_text(errors="replace")[-6000:])
    checks.that("trl: ends in good order", done.returncode == 0, f"exit status {done.returncode}")
    judge(checks, "trl", folder, options.steps)


def judge(checks: Checks, name: str, folder: Path, steps: int) -> None:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    lines = report["log"]
    trained = [line for line in lines if "loss" in line]
    checks.that(f"{name}: every step", len(trained) == steps, f"{len(trained)} of {steps}")
    held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
    checks.that(f"{name}: held-out accuracy rises", held_out[-1] > held_out[0] + 0.1, str(held_out))
    checks.figure(f"{name}: held-out before", held_out[0])
    checks.figure(f"{name}: held-out after", held_out[-1])
    # The first steps compile and capture.
    later = report["steps"][4:]
    for generates in (True, False):
        some = [step for step in later if ("generation" in step) == generates]
        what = "with generation" if generates else "without generation"
        for part in ("whole", "scoring", "generation"):
            if some and part in some[0]:
                checks.figure(f"{name}: step {what}, {part}, median ms", 1e3 * median(step[part] for step in some))
    for what, peak in report["peaks"].items():
        checks.figure(f"{name}: largest in use while {what}, GiB", peak / GIB)
    for figure in ("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"):
        values = [line[figure] for line in trained if figure in line]
        checks.that(f"{name}: {figure} is a number", all(map(math.isfinite, values)))
        checks.figure(f"{name}: {figure}, mean of steps", sum(values) / len(values))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json")
    options = parser.parse_args()
    options.folder, options.model = options.folder.resolve(), options.model.resolve()
    checks = Checks("trl")
    checks.run(train_with_baton, checks, options)
    checks.run(train_with_trl, checks, options)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
