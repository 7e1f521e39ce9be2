"""BatonGRPOTrainer on one real GPU, and TRL's own trainer with vLLM colocated on the same settings.

    trl_check.py FOLDER --model CHECKPOINT [--zero 2|3] [--steps 60] [--simulated]

SmolLM2-135M-Instruct learns sums by both, one after the other, started by the same accelerate file. Needs vLLM, trl
1.16 and datasets; on a stand-in GPU neither vLLM nor much of a model, and what is learnt and measured means nothing.
Each leaves its log in FOLDER/NAME/report.json.
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

from run_support import HERE, Node, Run, accelerate_launch, write_accelerate_file, write_recipe
from support import DEVICE, GIB, Checks, device_bytes_total

RUN_SECONDS = 280
#: Of the GPU's memory, for the weights and the cache of either's engine.
ENGINE_SHARE = 0.3
#: Of generation; Baton's `sync` has the handoff, its `back` the way back.
INSIDE = ("sync", "engine", "back")


def words(options: argparse.Namespace, trainer: str, out: Path) -> list[str]:
    return [
        *(str(HERE / "trl_train.py"), "--model", str(options.model), "--out", str(out), "--trainer", trainer),
        *("--vllm-share", str(ENGINE_SHARE), "--steps", str(options.steps)),
    ]


def cache_bytes(model: Path) -> int:
    """What is left for the cache of TRL's vLLM, but for what it keeps for activations."""
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return int(ENGINE_SHARE * device_bytes_total(DEVICE)) - weights


def train_with_baton(checks: Checks, options: argparse.Namespace) -> None:
    folder = options.folder / "baton"
    engine: dict[str, Any] = {"maxModelLength": 64} if options.simulated else {"cacheBytes": cache_bytes(options.model)}
    recipe = write_recipe(folder, options.model, node=Node(simulated=options.simulated, memory="2GiB"), **engine)
    run = Run(recipe, words(options, "baton", folder), options.accelerate)
    status = run.wait(RUN_SECONDS)
    if status != 0:
        print(run.output())
    checks.that("baton: ends in good order", status == 0, f"exit status {status}")
    summary = run.summary() or {}
    found = summary.get("checks", {})
    checks.that("baton: checksums", found.get("weightChecksumsPassed", 0) > 0, str(found))
    checks.that("baton: none fails", found.get("weightChecksumsFailed") == 0, str(found))
    print(f"     baton: {found} {summary.get('gpus')}")
    judge(checks, "baton", folder, options)


def train_with_trl(checks: Checks, options: argparse.Namespace) -> None:
    folder = options.folder / "trl"
    folder.mkdir(parents=True, exist_ok=True)
    command = accelerate_launch(options.accelerate, 1, words(options, "trl", folder))
    with (folder / "output.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=RUN_SECONDS, check=False)
    if done.returncode != 0:
        print((folder / "output.log").read_text(errors="replace")[-6000:])
    checks.that("trl: ends in good order", done.returncode == 0, f"exit status {done.returncode}")
    judge(checks, "trl", folder, options)


def judge(checks: Checks, name: str, folder: Path, options: argparse.Namespace) -> None:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    lines = report["log"]
    trained = [line for line in lines if "loss" in line]
    checks.that(f"{name}: every step", len(trained) == options.steps, f"{len(trained)} of {options.steps}")
    held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
    if not options.simulated:
        checks.that(f"{name}: held-out accuracy rises", held_out[-1] > held_out[0] + 0.1, str(held_out))
    checks.figure(f"{name}: held-out before", held_out[0])
    checks.figure(f"{name}: held-out after", held_out[-1])
    # The first steps compile and capture.
    later = report["steps"][4:]
    for generates in (True, False):
        some = [step for step in later if ("generation" in step) == generates]
        what = "with generation" if generates else "without generation"
        for part in ("whole", "scoring", "generation", *INSIDE):
            if some and part in some[0]:
                checks.figure(f"{name}: step {what}, {part}, median ms", 1e3 * median(step[part] for step in some))
    explain(checks, name, report, lines[-1]["train_runtime"])
    for what, peak in report["peaks"].items():
        checks.figure(f"{name}: largest in use while {what}, GiB", peak / GIB)
    for figure in ("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"):
        values = [line[figure] for line in trained if figure in line]
        if options.simulated and not values:
            continue  # TRL's trainer has none where transformers generates
        checks.that(f"{name}: {figure} is a number", all(map(math.isfinite, values)))
        checks.figure(f"{name}: {figure}, mean of steps", sum(values) / len(values))


def explain(checks: Checks, name: str, report: dict[str, Any], seconds: float) -> None:
    """Where the seconds of the training went: its first step, all others, evaluations, and the rest."""
    first, *others = [step["whole"] for step in report["steps"]]
    checks.figure(f"{name}: seconds of training", seconds)
    checks.figure(f"{name}: of that the first step", first)
    checks.figure(f"{name}: of that all other steps", sum(others))
    rest = seconds - first - sum(others)
    for number, evaluation in enumerate(report["evaluations"]):
        for part in ("whole", *INSIDE):
            if part in evaluation:
                checks.figure(f"{name}: evaluation {number}, {part}", evaluation[part])
        rest -= evaluation["whole"]
    checks.figure(f"{name}: of that neither steps nor evaluations", rest)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--zero", type=int, choices=(2, 3), default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--simulated", action="store_true", help="on a stand-in GPU; TRL's trainer without vLLM")
    parser.add_argument("--json")
    options = parser.parse_args()
    options.folder, options.model = options.folder.resolve(), options.model.resolve()
    options.accelerate = write_accelerate_file(options.folder / f"zero{options.zero}.yaml", options.zero)
    checks = Checks("trl")
    checks.run(train_with_baton, checks, options)
    checks.run(train_with_trl, checks, options)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
