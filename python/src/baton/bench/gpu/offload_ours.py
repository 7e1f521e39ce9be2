"""Release and return of DeepSpeed's training state through Baton's training memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from baton.bench.gpu import limits, ranks
from baton.bench.gpu.part import Job, Results, main, simulated, used_bytes
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

_WARM_STEPS = 3


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    context = context_bytes(results)
    start_distributed()
    limits.pinned_copies(results)
    results.step("building the engine")
    from baton.training.arena import own_arena
    from baton.training.memory import TrainingMemory

    memory = TrainingMemory(ranks.local_rank())
    # As in a run: the arena grows while the training state is built, long before the first handoff.
    memory._arena = arena = own_arena(memory.pool)
    trainer = Trainer(job)
    with memory:
        engine = trainer.build()
    memory.attach(engine)
    results.step("warming up")
    for _ in range(_WARM_STEPS):
        trainer.step(engine)
    began = time.perf_counter()
    arena.wait()
    results.value("arena waited for after the warm-up seconds", time.perf_counter() - began)
    results.value("arena bytes", memory.pool.info().arena_bytes)
    results.value("state bytes", memory.state_bytes())
    results.step("cycles")
    for _ in range(job.cycles + 1):
        cycle(memory, results, context)
        results.sample("step seconds", trainer.step(engine))
        results.show()


def context_bytes(results: Results) -> int:
    """What this rank's GPU has in use when its process has a CUDA context and nothing else."""
    gpu = ranks.local_rank()
    if not simulated():
        torch.cuda.set_device(gpu)
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    context = used_bytes(gpu)
    results.value("context bytes", context)
    return context


def cycle(memory: Any, results: Results, context: int) -> None:
    """All ranks release at once, and take back at once."""
    ranks.together()
    began = time.perf_counter()
    memory.prepare()
    report = memory.pause("all", prepared=True)
    released = time.perf_counter() - began
    left = used_bytes(ranks.local_rank()) - context
    reserved = 0 if simulated() else torch.cuda.memory_reserved()
    ranks.together()
    began = time.perf_counter()
    returned = memory.resume()
    resumed = time.perf_counter() - began
    ranks.sample(
        results,
        most={
            "release seconds": released,
            "deciding seconds": released - report.seconds,
            "left bytes": left,
            "torch reserved bytes": reserved,
            "outside bytes": report.outside_bytes,
            "return seconds": resumed,
        },
        mean={
            "saved bytes": report.saved_bytes,
            "released bytes": report.released_bytes,
            "copied bytes": returned.copied_bytes,
        },
    )


if __name__ == "__main__":
    main(measure)
