"""Two hundred handoffs between DeepSpeed and vLLM: none fails, nothing grows. Times are figures here; that they do not
drift is a row of the bench (`baton bench --subjects handoff --cycles 200`).

handoffs_check.py FOLDER [--model FOLDER] [--zero 2 3] [--handoffs 200] [--gpus N] [--engines M] [--simulated]

Without --model a small one that every tensor parallelism divides. On stand-ins nothing is said of times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from run_support import HERE, Run, add_node_options, node_of, write_recipe
from small_model import write_config
from support import MIB, Checks

WARM = 10
#: Of one handoff against another, at the same place of the loop: allocators round.
GROWTH_BYTES = 16 * MIB
RUN_SECONDS = 300


def judge(checks: Checks, name: str, records: list[dict[str, Any]], simulated: bool) -> None:
    third = (len(records) - WARM) // 3
    begin, end = records[WARM : WARM + third], records[-third:]
    for key in () if simulated else ("firstTokensSeconds", "returnSeconds", "stepSeconds"):
        before, after = (statistics.median(one[key] for one in part) for part in (begin, end))
        checks.figure(f"{name}: {key}, first", records[0][key])
        checks.figure(f"{name}: {key}, early median", before)
        checks.figure(f"{name}: {key}, late median", after)
    for key in ("generatingBytes", "trainingBytes", "torchReservedBytes", "residentBytes", "poolLiveBytes"):
        before, after = (max(one[key] for one in part) for part in (begin, end))
        checks.figure(f"{name}: {key}, GiB", after / 2**30)
        checks.that(f"{name}: {key} does not grow", after <= before + GROWTH_BYTES, f"{before} -> {after}")
    segments = {one["poolSegments"] for one in records[WARM:]}
    checks.that(f"{name}: the pool keeps its segments", len(segments) == 1, str(segments))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    add_node_options(parser)
    parser.add_argument("--zero", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--handoffs", type=int, default=200)
    parser.add_argument("--release", default="all")
    parser.add_argument("--json")
    options = parser.parse_args()
    checks, node = Checks("handoffs"), node_of(options)
    model = options.model.resolve() if options.model else None
    model = model or write_config(options.folder.resolve() / "model", node.simulated)
    for zero in options.zero:
        name = f"zero{zero}"
        folder = options.folder.resolve() / name
        recipe = write_recipe(folder, model, node=node, release=options.release)
        records = folder / "records.json"
        script = [str(HERE / "handoff_rank.py"), "--model", str(model), "--zero", str(zero)]
        script += ["--out", str(records), "--handoffs", str(options.handoffs)]
        run = Run(recipe, script)
        status = run.wait(RUN_SECONDS)
        checks.that(f"{name}: {options.handoffs} handoffs", status == 0, run.output(3000))
        for rank in range(node.gpus):
            found = records if rank == 0 else records.with_name(f"{records.name}.rank{rank}")
            if found.exists():
                who = name if node.gpus == 1 else f"{name}, rank {rank}"
                judge(checks, who, json.loads(found.read_text()), node.simulated)
        for phase in (run.summary() or {}).get("phases", []):
            print(f"     {name}: {phase}", flush=True)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
