"""What many.sh runs, for the GPUs that are there."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from run_support import HERE, ROOT

#: Warm cycles: with the first one 20 handoffs on many GPUs, fewer where time is shorter.
CYCLES = {2: 10, 4: 19, 8: 19}
SIMULATED_CYCLES = 2


@dataclass(frozen=True)
class Part:
    """A process with a deadline. `alone`: nothing else runs meanwhile, since times are taken."""

    name: str
    command: list[str]
    seconds: float
    alone: bool
    #: What it needs and is not there; empty: nothing.
    lacking: str = ""


def parts_for(gpus: int, simulated: bool, work: Path, graphs: str) -> list[Part]:
    """In the order in which they run: what is measured first, then what goes on side by side. `graphs`: of the bench."""
    checkpoint = os.environ.get("BATON_CHECK_MODEL", "")
    engines = 1 if gpus == 2 else 2
    shape, largest, adapted = ("tiny", "tiny", "tiny") if simulated else ("1.5b" if gpus == 2 else "7b", "7b", "14b")
    cycles = SIMULATED_CYCLES if simulated else CYCLES[gpus]
    flag = ["--simulated"] if simulated else []
    node = ["--gpus", str(gpus)]

    def bench(name: str, seconds: float, *words: str) -> Part:
        command = ["node", str(ROOT / "dist/cli/main.js"), "bench", "--out", str(work / "bench"), *node]
        return Part(name, [*command, "--cycles", str(cycles), "--graphs", graphs, *words], seconds, alone=True)

    def check(name: str, script: str, seconds: float, *words: str, alone: bool = False, lacking: str = "") -> Part:
        command = [sys.executable, str(HERE / script), str(work / name), *node, *flag, *words]
        # A machine without GPUs has few cores besides.
        return Part(name, [*command, "--json", str(work / f"{name}.json")], seconds, alone or simulated, lacking)

    tp = ["--engines", str(engines)]
    # The other way to use the GPUs: an engine on each of two, or one over all four.
    other, otherwise = ("tp1", ["--engines", "2"]) if gpus == 2 else ("tp4", ["--engines", "1"])
    sync = ["--subjects", "sync,sleep", "--shapes", largest]
    # As GRPO trains: a frozen reference model, two optimizer steps on each batch. On two GPUs as the figures of one.
    batch = [] if gpus == 2 else ["--reference", "--iterations", "2"]
    handoff = ["--subjects", "handoff", "--shapes", shape, *tp, *batch]
    kind = "" if gpus == 2 else "-reference-2steps"
    grpo = () if simulated else ("--model", checkpoint, "--recipe", "smollm2-135m")
    lora = [*["--subjects", "handoff", "--shapes", adapted, *tp], "--lora", "32", "--reference", "--iterations", "2"]
    # Most of a case is its start, which takes all the cores of a small machine.
    kills = ["--at-once", "1", *(["--phase", "sync", "--phase", "generate"] if gpus > 2 else [])] if simulated else []
    parts = [
        check("ranks", "ranks_check.py", 300, *(["--handoffs", "12"] if simulated else []), alone=True),
        bench("offload", 420, "--subjects", "offload", "--shapes", shape, *tp),
        bench("sync", 420, *sync, *tp),
        bench(f"sync-{other}", 300, *sync, *otherwise, "--parts", "ours") if gpus < 8 else None,
        bench("handoff-tight", 560, *handoff, "--parts", f"tight{kind}-{shape}"),
        bench("handoff-roomy", 560, *handoff, "--parts", "roomy"),
        bench("handoff-zero3", 560, *handoff, "--parts", "tight-zero3"),
        bench("handoff-lora", 560, *lora, "--parts", "tight") if gpus > 2 or simulated else None,
        check("tokens", "tokens_check.py", 400, *tp),
        check(f"tokens-{other}", "tokens_check.py", 400, *otherwise) if gpus < 8 else None,
        check("handoffs", "handoffs_check.py", 400, *tp, "--handoffs", "30" if simulated else "50"),
        check(
            "grpo",
            "grpo_check.py",
            540,
            *("--engines", str(gpus), "--batches", "12" if simulated else "40", *grpo),
            # One optimizer step a pass, as the recipes have it for one GPU and for two.
            *("--set", f"grpo.gradient_accumulation_steps={max(1, (8 if simulated else 4) // gpus)}"),
            *(() if simulated or gpus < 8 else ("--set", "grpo.micro_batch=64")),
            lacking="" if checkpoint or simulated else "BATON_CHECK_MODEL, a folder with SmolLM2-135M-Instruct",
        ),
        check("kills", "kill_check.py", 560, *tp, *kills, alone=True),
    ]
    return [part for part in parts if part is not None]
