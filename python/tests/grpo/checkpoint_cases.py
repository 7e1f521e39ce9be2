"""Runs with checkpoints: real plans, of small data and a small model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extent import ALL
from trainer_cases import LORA, RANKS, Case, make_model

from baton.training.grpo.plan import Plan, make_plan


@dataclass(frozen=True)
class Run:
    """`stop`: optimizer step after which the run that saves is ended. `resumed`: steps that it is gone on from."""

    case: Case
    dtype: str
    stop: int
    resumed: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.case.name

    def recipe(self, folder: Path, **changes: Any) -> dict[str, Any]:
        own: dict[str, Any] = {
            # A path that is absolute stays what it is.
            "output": str(folder / self.name / changes.pop("output", "saved")),
            "dtype": self.dtype,
            "data": {"files": ["problems.jsonl"]},
            "lora": LORA | {"dropout": 0.2} if self.case.lora else None,
            "seed": 3,
        }
        return self.case.recipe(folder / "model", **own) | changes

    def plan(self, folder: Path, ranks: int = RANKS, **changes: Any) -> Plan:
        return make_plan(self.recipe(folder, **changes), folder, ranks, None, print)

    def checkpoint(self, folder: Path, step: int) -> str:
        return str(folder / self.name / "saved" / "checkpoints" / f"step-{step:08d}")


def _run(stage: int, dtype: str, *, lora: bool = False, beta: float = 0.0) -> Run:
    """Two passes of two micro-batches: the checkpoint before the last is in the middle of a generated batch."""
    name = f"zero{stage}-lora" if lora else f"zero{stage}"
    if lora:
        case = Case(name, stage, "grpo", 2, micro_batch=4, accumulation=2, batches=2, lora=True, beta=beta, warmup=2)
        return Run(case, dtype, stop=2, resumed=(1, 2))
    case = Case(name, stage, "bnpo", 2, micro_batch=4, accumulation=1, batches=2, beta=beta)
    return Run(case, dtype, stop=4, resumed=(3, 4))


SPAN = Case("zero2-span", 2, "grpo", 2, micro_batch=4, accumulation=3, batches=3)

# ZeRO-3 first: it replaces torch's linear function in the whole process, and its replacement rounds differently.
ALL_RUNS = [
    _run(3, "bfloat16", beta=0.1),
    _run(3, "bfloat16", lora=True, beta=0.1),
    _run(2, "bfloat16", beta=0.1),
    _run(2, "bfloat16", lora=True),
    _run(1, "float32"),
    _run(1, "float32", lora=True, beta=0.1),
    # After its second step another step is begun in the same batch, and ended in the next.
    Run(SPAN, "float32", stop=2, resumed=(2,)),
]
#: With ZeRO-3 first in any case.
RUNS = ALL_RUNS if ALL else [ALL_RUNS[0], ALL_RUNS[1], ALL_RUNS[3], ALL_RUNS[6]]
#: A learning rate that none of them has.
FASTER = 0.125
#: Begun in the middle of a batch, with dropout: what a checkpoint has beside DeepSpeed's part is lost here on purpose.
SPOILED = ALL_RUNS[3]


def prepare(folder: Path) -> None:
    make_model(folder / "model")
    for name, shift in (("problems", 0), ("other_problems", 1)):
        rows = [{"prompt": f"{a}+{a}=", "answer": str(2 * a + shift)} for a in range(10, 18)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
