"""The peer: DeepSpeed's own offload_states and reload_states, as its documentation says to use them."""

from __future__ import annotations

import torch

from baton.bench.gpu import limits
from baton.bench.gpu.offload_ours import context_bytes
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

_WARM_STEPS = 3


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    context = context_bytes(results)
    limits.pinned_copies(results)
    start_distributed()
    results.step("building the engine")
    trainer = Trainer(job)
    engine = trainer.build()
    results.step("warming up")
    for _ in range(_WARM_STEPS):
        trainer.step(engine)
    results.step("cycles")
    for _ in range(job.cycles + 1):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()

        def offload() -> None:
            # Collects garbage and empties torch's cache itself.
            engine.offload_states(pin_memory=True, non_blocking=True)
            torch.cuda.synchronize()

        results.timed("release seconds", offload)
        results.sample("left bytes", used_bytes() - context)
        results.sample("saved bytes", before - torch.cuda.memory_allocated())

        def reload() -> None:
            engine.reload_states(non_blocking=True)
            torch.cuda.synchronize()

        results.timed("return seconds", reload)
        results.sample("step seconds", trainer.step(engine))
        results.show()


if __name__ == "__main__":
    main(measure)
