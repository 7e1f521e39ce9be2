"""Release and return of DeepSpeed's training state through Baton's training memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from baton.bench.gpu import limits
from baton.bench.gpu.part import Job, Results, main, simulated, synchronize, used_bytes
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

_WARM_STEPS = 3


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    context = context_bytes(results)
    limits.pinned_copies(results)
    start_distributed()
    results.step("building the engine")
    from baton.training.arena import own_arena
    from baton.training.memory import TrainingMemory

    memory = TrainingMemory(0)
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
    """What the GPU has in use when this process has a CUDA context and nothing else."""
    if not simulated():
        torch.cuda.set_device(0)
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    context = used_bytes()
    results.value("context bytes", context)
    return context


def cycle(memory: Any, results: Results, context: int) -> None:
    synchronize()

    def release() -> Any:
        memory.prepare()
        return memory.pause("all", prepared=True)

    report = results.timed("release seconds", release)
    results.sample("left bytes", used_bytes() - context)
    if not simulated():
        results.sample("torch reserved bytes", torch.cuda.memory_reserved())
    results.sample("saved bytes", report.saved_bytes)
    results.sample("released bytes", report.released_bytes)
    results.sample("outside bytes", report.outside_bytes)
    returned = results.timed("return seconds", memory.resume)
    results.sample("copied bytes", returned.copied_bytes)


if __name__ == "__main__":
    main(measure)
