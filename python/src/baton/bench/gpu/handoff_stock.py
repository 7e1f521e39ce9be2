"""The peer of a handoff, scripted well: DeepSpeed's offload_states, vLLM's wake_up, IPC transfer and sleep.

Everything is called in the order that costs least: optimizer state leaves, the weights wake, are sent while the
parameters are still there, the cache wakes. The transfer is not packed (see `stock.PACKING`). The same with nothing
offloaded is measured where there is room for it.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from baton.bench.gpu.handoff_rank import PROMPTS
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.stock import PACKING, generate, start_vllm, transfer
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

#: For activations and what libraries take besides.
_SPARE_BYTES = 4 << 30


def measure(job: Job, results: Results) -> None:
    results.step("starting the engine")
    began = time.monotonic()
    torch.cuda.set_device(0)
    llm = start_vllm(job)
    results.value("start seconds", round(time.monotonic() - began, 1))
    generate(llm, PROMPTS, 1)
    llm.init_weight_transfer_engine({"init_info": {}})
    awake = used_bytes()
    llm.sleep(2)
    engine_bytes = awake - used_bytes()
    results.value("engine bytes", engine_bytes)
    results.step("building the trainer")
    # After vLLM: what a launcher sets is not meant for it.
    prepare_environment()
    start_distributed()
    trainer = Trainer(job)
    engine = trainer.build()
    results.step("warming up")
    trainer.warm_up(engine)
    results.step("cycles")
    for _ in range(job.cycles + 1):
        cycle(results, llm, engine, offload=True)
        results.sample("step seconds", trainer.step(engine))
        results.show()
    torch.cuda.empty_cache()
    room = results.record["machine"]["totalBytes"] - used_bytes() - engine_bytes
    results.value("room beside everything bytes", room)
    if room < _SPARE_BYTES:
        return
    results.step("cycles with nothing offloaded")
    for _ in range(job.cycles + 1):
        cycle(results, llm, engine, offload=False)
        trainer.step(engine)
        results.show()


def offload_states(trained: Any) -> None:
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

    include = [State.optim_states, State.hp_params, State.lp_grads]
    trained.offload_states(include=include, pin_memory=True, non_blocking=True)
    torch.cuda.synchronize()


def reload_states(trained: Any) -> None:
    trained.reload_states(non_blocking=True)
    torch.cuda.synchronize()


def cycle(results: Results, llm: Any, trained: Any, *, offload: bool) -> None:
    """There and back; each step is a sample too."""
    prefix = "" if offload else "staying: "
    torch.cuda.synchronize()
    began = at = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal at
        now = time.perf_counter()
        results.sample(f"{prefix}{name} seconds", now - at)
        at = now

    if offload:
        offload_states(trained)
    else:
        torch.cuda.empty_cache()
    mark("offload")
    llm.wake_up(["weights"])
    mark("wake weights")
    transfer(llm, ((name, p.data) for name, p in trained.module.named_parameters()), **PACKING["unpacked"])
    mark("transfer")
    llm.wake_up(["kv_cache"])
    mark("wake cache")
    results.sample(f"{prefix}used while generating bytes", used_bytes())
    at = time.perf_counter()
    if generate(llm, PROMPTS, 1, temperature=1.0) != len(PROMPTS):
        raise AssertionError("not every prompt has its first token")
    mark("generate")
    results.sample(f"{prefix}to first tokens seconds", at - began)
    began = at
    llm.sleep(2)
    mark("sleep")
    if offload:
        reload_states(trained)
    mark("reload")
    results.sample(f"{prefix}to first forward seconds", at - began)


if __name__ == "__main__":
    main(measure)
