"""A whole `baton run` on one real GPU: DeepSpeed trains and vLLM generates, handed over by the controller.

    node_check.py FOLDER [--model CHECKPOINT] [--part NAME ...] [--steps N]

Parts, each a run of its own: `zero2`, `zero3` (training of CHECKPOINT, SmolLM2-135M-Instruct, on sums: the reward must
rise), `thin` (a few steps of it). Each leaves its reports and logs in FOLDER/PART and prints what it checked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support import Checks

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GIB = 1 << 30
RUN_SECONDS = 420


def recipe(folder: Path, model: Path, **engine: Any) -> Path:
    """A recipe as a user would write it (JSON is YAML)."""
    path = folder / "recipe.yaml"
    values = {
        "engine": {
            "kind": "vllm",
            "model": str(model),
            "dtype": "bfloat16",
            "maxModelLength": 128,
            "maxSequences": 256,
            "cacheBytes": "8GiB",
            **engine,
        },
        "gpus": {"count": 1},
        "checks": {"logprobSequences": 16},
        "out": str(folder),
    }
    path.write_text(json.dumps(values, indent=1))
    return path


def baton_run(recipe_path: Path, folder: Path, script: list[str]) -> tuple[int, float]:
    """Exit status and seconds of the run; its output goes to FOLDER/output.log."""
    command = ["node", str(ROOT / "dist/cli/main.js"), "run", str(recipe_path), "--log", "--"]
    command += [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", *script]
    began = time.monotonic()
    with (folder / "output.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(30)
            status = 124
    return status, time.monotonic() - began


def train(checks: Checks, folder: Path, model: Path, part: str, zero: int, steps: int, learns: bool) -> None:
    target = folder / part
    target.mkdir(parents=True, exist_ok=True)
    script = [str(HERE / "smollm2.py"), "--model", str(model), "--zero", str(zero), "--steps", str(steps)]
    script += ["--problems", "48", "--learning-rate", "2e-5", "--held-out", "512"]
    status, seconds = baton_run(recipe(target, model), target, script)
    print((target / "output.log").read_text()[-6000:], flush=True)
    checks.that(f"{part}: the run ends in good order", status == 0, f"exit status {status}")
    if not (target / "summary.json").exists():
        return
    summary = json.loads((target / "summary.json").read_text())
    checks.figure(f"{part}: seconds", seconds)
    found, reward = summary["checks"], summary["reward"]
    checks.that(f"{part}: not simulated", summary["simulated"] is False)
    checks.that(f"{part}: every handoff was made", summary["handoffs"]["toTraining"] == steps + 1, str(summary["handoffs"]))
    checks.that(f"{part}: checksums", found["weightChecksumsPassed"] > 0 and found["weightChecksumsFailed"] == 0, str(found))
    difference = found["maxLogprobDifference"]
    checks.that(f"{part}: logprobs", difference is not None and difference <= 0.2, str(difference))
    if difference is not None:
        checks.figure(f"{part}: largest logprob difference", difference)
    for name in ("first", "last", "heldOutBefore", "heldOutAfter"):
        if reward[name] is not None:
            checks.figure(f"{part}: reward {name}", reward[name])
    for phase in summary["phases"]:
        print(f"     {part}: {phase}", flush=True)
    print(f"     {part}: {summary['gpus']}", flush=True)
    if learns:
        before, after = reward["heldOutBefore"], reward["heldOutAfter"]
        checks.that(f"{part}: the held-out reward rises by 10 points", after - before >= 0.1, f"{before} -> {after}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--part", action="append")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    parts = options.part or ["thin", "zero2", "zero3"]
    checks = Checks("node")
    folder, model = options.folder.resolve(), options.model.resolve()
    for part in parts:
        zero = 3 if part == "zero3" else 2
        steps = 3 if part == "thin" else options.steps
        checks.run(train, checks, folder, model, part, zero, steps, part != "thin")
    return checks.end(os.environ.get("CHECK_JSON"))


if __name__ == "__main__":
    sys.exit(main())
