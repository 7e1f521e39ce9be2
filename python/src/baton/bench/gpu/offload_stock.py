"""The peer: DeepSpeed's own offload_states and reload_states, as its documentation says to use them."""

from __future__ import annotations

import time

import torch

from baton.bench.gpu import limits, ranks
from baton.bench.gpu.offload_ours import context_bytes
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

_WARM_STEPS = 3


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    context = context_bytes(results)
    start_distributed()
    limits.pinned_copies(results)
    results.step("building the engine")
    trainer = Trainer(job)
    engine = trainer.build()
    results.step("warming up")
    for _ in range(_WARM_STEPS):
        trainer.step(engine)
    results.step("cycles")
    for _ in range(job.cycles + 1):
        ranks.together()
        before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        # Collects garbage and empties torch's cache itself.
        engine.offload_states(pin_memory=True, non_blocking=True)
        torch.cuda.synchronize()
        released = time.perf_counter() - began
        left = used_bytes(ranks.local_rank()) - context
        saved = before - torch.cuda.memory_allocated()
        ranks.together()
        began = time.perf_counter()
        engine.reload_states(non_blocking=True)
        torch.cuda.synchronize()
        returned = time.perf_counter() - began
        ranks.sample(
            results,
            most={"release seconds": released, "left bytes": left, "return seconds": returned},
            mean={"saved bytes": saved},
        )
        results.sample("step seconds", trainer.step(engine))
        results.show()


if __name__ == "__main__":
    main(measure)
