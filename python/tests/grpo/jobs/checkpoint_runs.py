"""Runs that never stop and runs that stop after a checkpoint (`first`), and those that go on from one (`second`).

    checkpoint_runs.py first|second FOLDER

FOLDER has what `checkpoint_cases` puts there. Each of the two is a process of its own on every rank.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from checkpoint_cases import FASTER, RUNS, SPOILED, Run
from engine_state import handoff, whole
from trainer_cases import as_batch, samples_of
from training.jobs import common
from training.jobs.common import RANK
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from baton.training.grpo.checkpoints import Checkpoints, Progress
from baton.training.grpo.plan import Plan
from baton.training.grpo.policy_model import build_policy
from baton.training.grpo.ranks import Ranks
from baton.training.grpo.trainer import Trainer
from baton.training.memory import TrainingMemory

Spoil = Callable[[Trainer, Progress], None]


def nothing(*_: Any) -> None: ...


def train(plan: Plan, memory: TrainingMemory, stop: int | None = None, spoil: Spoil = nothing) -> dict[str, Any]:
    """As `baton.examples.train_grpo` does, to the end or until optimizer step `stop`; completions come from a seed.

    `spoil` is called after a checkpoint is loaded.
    """
    began = time.perf_counter()
    options = plan.options
    set_seed(options.seed)
    with memory:
        policy = build_policy(options, plan.shape)
        ranks = Ranks.current(policy.device)
        torch.manual_seed(options.seed * 1_000_003 + ranks.rank)
        checkpoints = Checkpoints(plan, policy, ranks)
        progress = checkpoints.load()
    memory.attach(policy.engine, policy.frozen)
    trainer = Trainer(policy, options, ranks, memory.reference)
    spoil(trainer, progress)
    found: dict[str, Any] = {"steps": {}, "saved": {}, "began_at": (progress.number, progress.position)}
    for step in steps(options.batches, trainer, checkpoints, progress, memory, found):
        if step == stop:
            break
    found["parameters"] = whole(policy.engine, trained=False)
    memory.detach()
    policy.engine.destroy()
    return found | {"seconds": time.perf_counter() - began}


def steps(
    batches: int,
    trainer: Trainer,
    checkpoints: Checkpoints,
    progress: Progress,
    memory: TrainingMemory,
    found: dict[str, Any],
) -> Iterator[int]:
    """Trains to the end, and gives the number of each optimizer step when its checkpoint is saved."""
    engine = memory.engine
    while progress.number < batches:
        number, batch = progress.number, progress.batch
        if batch is None:
            handoff(memory, wait=number % 2 == 0)
            batch = as_batch(samples_of(number), RANK, int(engine.global_steps))
            trainer.prepare(batch)
        for step in trainer.learn(batch, progress.position):
            ratio = step.figures.report()["ratioMean"]
            values = (step.loss, step.gradient_norm or 0.0, step.learning_rate, ratio or 0.0)
            found["steps"][step.number] = [float(value).hex() for value in values]
            used_up = step.position == trainer.passes
            progress = Progress(number + 1) if used_up else Progress(number, step.position, batch)
            if checkpoints.due(step.number):
                folder = checkpoints.save(step.number, progress)
                found["saved"][step.number] = {"folder": folder, "parameters": whole(engine, trained=False)}
            yield step.number
        progress = Progress(number + 1)


def first(run: Run, folder: Path, memory: TrainingMemory) -> dict[str, Any]:
    return {
        run.name: train(run.plan(folder, output="never-saved"), memory),
        f"{run.name} stopped": train(run.plan(folder, checkpoint_every=1, keep_checkpoints=2), memory, run.stop),
    }


def second(run: Run, folder: Path, memory: TrainingMemory) -> dict[str, Any]:
    plans = {step: run.plan(folder, output="resumed", resume=run.checkpoint(folder, step)) for step in run.resumed}
    found = {f"{run.name} from {step}": train(plan, memory) for step, plan in plans.items()}
    if run is SPOILED:
        plan = plans[run.resumed[0]]
        faster = run.plan(folder, output="faster", resume=run.checkpoint(folder, run.resumed[0]), learning_rate=FASTER)
        found["faster"] = train(faster, memory)
        found |= {spoil.__name__: train(plan, memory, spoil=spoil) for spoil in (other_dropout, new_old_logprobs)}
    return found


def other_dropout(*_: Any) -> None:
    torch.manual_seed(99 + RANK)


def new_old_logprobs(trainer: Trainer, progress: Progress) -> None:
    batch = progress.batch
    assert batch is not None
    micros, batch._old = trainer._micros(batch), None
    batch.set_old_logprobs(micros, trainer._logprobs(trainer._engine, micros))


def main() -> None:
    which, folder = {"first": first, "second": second}[sys.argv[1]], Path(sys.argv[2])
    disable_progress_bar()
    deepspeed.init_distributed("gloo")
    memory = TrainingMemory(segment_bytes=int(os.environ["BATON_STANDIN_GRANULARITY"]))
    results: dict[str, Any] = {}
    for run in RUNS:
        results |= which(run, folder, memory)
    torch.save(results, folder / f"{sys.argv[1]}-rank{RANK}.pt")
    common.finish({name: result["seconds"] for name, result in results.items()})


if __name__ == "__main__":
    main()
