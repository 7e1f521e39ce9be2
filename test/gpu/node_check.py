"""A whole `baton run` on one real GPU: DeepSpeed trains and vLLM generates, handed over by the controller.

    node_check.py FOLDER [--model CHECKPOINT] [--part NAME ...] [--steps N]

Parts, each a run of its own: `zero2`, `zero3` (training of CHECKPOINT, SmolLM2-135M-Instruct, on sums: the reward must
rise), `thin` (a few steps of it). Each leaves its reports and logs in FOLDER/PART and prints what it checked.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from run_support import HERE, Run, write_recipe
from support import Checks

RUN_SECONDS = 420


def train(checks: Checks, folder: Path, model: Path, part: str, zero: int, steps: int, learns: bool) -> None:
    recipe = write_recipe(folder / part, model)
    script = [str(HERE / "smollm2.py"), "--model", str(model), "--zero", str(zero), "--steps", str(steps)]
    script += ["--problems", "48", "--learning-rate", "2e-5", "--held-out", "512"]
    run = Run(recipe, script)
    status = run.wait(RUN_SECONDS)
    checks.figure(f"{part}: seconds", time.monotonic() - run.began)
    print(run.output(), flush=True)
    checks.that(f"{part}: the run ends in good order", status == 0, f"exit status {status}")
    summary = run.summary()
    if summary is None:
        return
    found, reward = summary["checks"], summary["reward"]
    checks.that(f"{part}: not simulated", summary["simulated"] is False)
    checks.that(
        f"{part}: every handoff was made", summary["handoffs"]["toTraining"] == steps + 1, str(summary["handoffs"])
    )
    checks.that(
        f"{part}: checksums", found["weightChecksumsPassed"] > 0 and found["weightChecksumsFailed"] == 0, str(found)
    )
    difference = found["maxLogprobDifference"]
    checks.that(f"{part}: logprobs", difference is not None and difference <= 3.0, str(difference))
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
    parser.add_argument("--json")
    options = parser.parse_args()
    parts = options.part or ["thin", "zero2", "zero3"]
    checks = Checks("node")
    folder, model = options.folder.resolve(), options.model.resolve()
    for part in parts:
        zero = 3 if part == "zero3" else 2
        steps = 3 if part == "thin" else options.steps
        checks.run(train, checks, folder, model, part, zero, steps, part != "thin")
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
