"""The peers of sync and sleep: vLLM's own sleep mode, IPC weight transfer, and load_weights from one mapped buffer."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch

from baton.bench.gpu import limits
from baton.bench.gpu.desk import PROMPTS
from baton.bench.gpu.model import elements_of, tensors_of
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.stock import PACKING, generate, let_go_of_sent, start_vllm, transfer


def measure(job: Job, results: Results) -> None:
    limits.device_copy(results, 2 * elements_of(job.model))
    results.step("starting the engine")
    began = time.monotonic()
    llm = start_vllm(job, worker_extension_cls="baton.bench.gpu.stock_worker.BufferLoads")
    results.value("start seconds", round(time.monotonic() - began, 1))
    results.value("tokens before", generate(llm, PROMPTS, 8, temperature=0.0))
    results.step("sleep and wake")
    results.value("awake bytes", used_bytes())
    for _ in range(job.cycles + 1):
        results.timed("sleep seconds", lambda: llm.sleep(2))
        results.sample("asleep bytes", used_bytes())
        results.timed("wake weights seconds", lambda: llm.wake_up(["weights"]))
        results.timed("wake cache seconds", lambda: llm.wake_up(["kv_cache"]))
        results.show()
    results.step("making the trainer's weights")
    shapes = tensors_of(job.model)
    flat = torch.empty(elements_of(job.model), dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    tensors: list[tuple[str, torch.Tensor]] = []
    placed: list[tuple[str, list[int], int]] = []
    at = 0
    for name, shape in shapes.items():
        elements = math.prod(shape)
        tensors.append((name, flat[at : at + elements].view(*shape)))
        placed.append((name, list(shape), at))
        at += elements
    results.value("copied bytes", 2 * at)
    # First of all: what a transfer has sent is held for long, and the buffer needs the room.
    load_from_buffer(job, results, llm, flat, placed)
    torch.cuda.empty_cache()
    results.step("IPC transfer")
    llm.init_weight_transfer_engine({"init_info": {}})
    for name, arguments in PACKING.items():
        for _ in range(job.cycles + 1):
            results.timed(f"ipc {name} seconds", partial(transfer, llm, tensors, **arguments))
            let_go_of_sent()
            results.show()
    results.value("tokens after", generate(llm, PROMPTS, 8, temperature=0.0))


def load_from_buffer(
    job: Job, results: Results, llm: Any, flat: torch.Tensor, placed: list[tuple[str, list[int], int]]
) -> None:
    results.step("load_weights from one mapped buffer")
    from torch.multiprocessing.reductions import reduce_tensor

    bucket = torch.empty_like(flat)
    bucket.copy_(flat)
    torch.cuda.synchronize()
    llm.collective_rpc("bench_open", args=(reduce_tensor(bucket)[1], placed))
    for _ in range(job.cycles + 1):
        results.timed("load seconds", lambda: llm.collective_rpc("bench_load"))

        def gathered() -> None:
            # What gathering partitions into a bucket is for one rank: a copy.
            bucket.copy_(flat)
            torch.cuda.synchronize()
            llm.collective_rpc("bench_load")

        results.timed("gather and load seconds", gathered)
        results.show()
    llm.collective_rpc("bench_close")


if __name__ == "__main__":
    main(measure)
