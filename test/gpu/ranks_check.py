"""Several training ranks, each on its GPU: paused together they train as if never paused, and nothing grows.

    ranks_check.py FOLDER [--gpus N] [--zero 2 3] [--handoffs 50] [--simulated] [--json FILE]

Losses and gradient norms of every rank must be those of the same training without pauses, to the last bit; GPU memory
and pool are the same after the last handoff as after the first ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from run_support import HERE, standin_environment, torchrun
from support import MIB, Checks

RUN_SECONDS = 280
#: Handoffs after which nothing may grow any more: the moments are made in the first step.
WARM = 4


def judge(checks: Checks, name: str, ranks: list[dict[str, Any]], gpus: int, simulated: bool) -> None:
    checks.that(f"{name}: all ranks", [one["rank"] for one in ranks] == list(range(gpus)), str(len(ranks)))
    backend = "gloo" if simulated else "nccl"
    checks.that(f"{name}: over {backend}", all(one["backend"] == backend for one in ranks))
    for one in ranks:
        who = f"{name}, rank {one['rank']}"
        difference = one["first difference"]
        checks.that(f"{who}: losses and norms of {one['steps']} steps", one["course"], f"first difference {difference}")
        checks.that(f"{who}: state complete, weights' checksums", one["complete"] and one["checksums"])
        checks.that(f"{who}: every pause", not one["wrong"], "; ".join(one["wrong"]))
        for what, slack in (("left", 0 if simulated else 2 * MIB), ("segments", 0), ("live", 0)):
            values = one[what]
            grown = max(values[WARM:]) - max(values[WARM : WARM + 4])
            checks.that(f"{who}: {what} does not grow over {len(values)} handoffs", grown <= slack, str(values))
    for what in ("pause seconds", "resume seconds"):
        checks.figure(f"{name}: {what}, median, slowest rank", max(one[what] for one in ranks))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--zero", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--handoffs", type=int, default=50)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    checks = Checks(f"ranks, {options.gpus} GPUs{' (simulated)' if options.simulated else ''}")
    # The same sums in the same order each time.
    environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}
    for zero in options.zero:
        name, out = f"zero{zero}", folder / f"ranks-zero{zero}.json"
        out.unlink(missing_ok=True)
        script = [str(HERE / "ranks_job.py"), "--zero", str(zero), "--out", str(out)]
        script += ["--handoffs", str(options.handoffs)]
        if options.simulated:
            environment = standin_environment(folder / f"standin-{name}", options.gpus)
        with (folder / f"ranks-{name}.log").open("w") as log:
            ranks = subprocess.Popen(torchrun(options.gpus, script), env=environment, stdout=log, stderr=log)
            try:
                status = ranks.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                ranks.terminate()  # the launcher ends its ranks
                ranks.wait(60)
                status = 124
        said = (folder / f"ranks-{name}.log").read_text(errors="replace")[-3000:]
        checks.that(f"{name}: the ranks end in good order", status == 0, f"exit status {status}\n{said}")
        if out.exists():
            judge(checks, name, json.loads(out.read_text()), options.gpus, options.simulated)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
