"""A rank of a real `baton run` whose handoffs are timed by its own clock.

baton run RECIPE -- python -m torch.distributed.run --nproc_per_node 1 -m baton.bench.gpu.handoff_rank JOB

Of several ranks the last one to be done counts, in every cycle.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import baton
from baton.bench.gpu import ranks
from baton.bench.gpu.part import Job, Results, main, simulated, used_bytes
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

PROMPTS = [[(i * 7 + j) % 400 + 10 for j in range(64)] for i in range(64)]


def prompts_of(rank: int, world: int) -> list[list[int]]:
    """This rank's share of the prompts."""
    mine = PROMPTS[rank::world]
    return [prompt[:8] for prompt in mine[:8]] if simulated() else mine


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    results.step("starting the engine")
    # A rank joins here, and is let in when the engine has started and sleeps.
    training_memory = baton.training_memory()
    results.step("building the trainer")
    gpu = ranks.local_rank()
    if not simulated():
        torch.cuda.set_device(gpu)
        torch.zeros(1, device="cuda")
    start_distributed()
    trainer = Trainer(job)
    with training_memory:
        engine = trainer.build()
    session = baton.attach(engine, trainer.frozen)
    first_forward = _FirstForward()
    results.step("warming up")
    trainer.warm_up(engine)
    results.value("state bytes", session.memory.state_bytes())
    prompts = prompts_of(ranks.rank(), ranks.world())
    sampling = baton.Sampling(max_tokens=1, n=1, temperature=1.0, seed=1)
    results.step("cycles")
    for _ in range(job.cycles + 1):
        ranks.together()
        began = time.perf_counter()
        with session.rollout() as rollout:
            opened = time.perf_counter()
            used = used_bytes(gpu)
            completions = rollout.generate(prompts, sampling)
            generated = time.perf_counter()
        left = time.perf_counter()
        if sum(completion.tokens.size for completion in completions) != len(prompts):
            raise AssertionError("not every prompt has its first token")
        taken = {
            "to generation seconds": opened - began,
            "to first tokens seconds": generated - began,
            "to first forward seconds": first_forward.taken(left) - generated,
            "to the end of the rollout seconds": left - generated,
            "used while generating bytes": used,
        }
        if job.reference:
            began = time.perf_counter()
            with session.reference():
                trainer.refer(engine)
            taken["reference seconds"] = time.perf_counter() - began
        taken["step seconds"] = trainer.step(engine)
        for _ in range(job.iterations - 1):
            taken["later step seconds"] = trainer.step(engine)
        returned = session.memory.wait()
        taken["waited seconds"] = 0.0 if returned is None else returned.waited_seconds
        # Beside the step behind which state streams in: steps become faster as a process goes on.
        taken["plain step seconds"] = trainer.step(engine)
        taken["used while training bytes"] = used_bytes(gpu)
        taken["resident bytes"] = ranks.resident_bytes()
        taken["pool live bytes"] = session.memory.pool.info().live_bytes
        ranks.sample(results, most=taken)
        results.show()
    session.finish()
    torch.distributed.destroy_process_group()


class _FirstForward:
    """When the first forward pass after a handoff began: Baton's own, which compares logprobs, where it makes one."""

    def __init__(self) -> None:
        from baton.training import logprobs

        self._at: float | None = None
        compare = logprobs.compare

        def noticed(*arguments: Any, **more: Any) -> Any:
            self._at = time.perf_counter()
            return compare(*arguments, **more)

        logprobs.compare = noticed

    def taken(self, otherwise: float) -> float:
        at, self._at = self._at, None
        return otherwise if at is None else at


if __name__ == "__main__":
    main(measure)
