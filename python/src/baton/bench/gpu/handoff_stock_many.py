"""The peer of a handoff on several GPUs, scripted well: DeepSpeed's offload_states; vLLM's wakes, IPC transfer, sleep.

A rank on each GPU, started by a launcher; rank 0 has the engines. In the order that costs least: what the ranks can
spare leaves, the weights wake and are sent while the parameters are still there, the cache wakes. ZeRO-2 ranks send
their parameters as they lie; ZeRO-3 ranks gather them in buckets and send each bucket. Of adapters the merged weights
are sent. A reference model leaves for pinned memory under ZeRO-2, once filled, and stays partitioned where it is under
ZeRO-3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from baton.bench.gpu import ranks
from baton.bench.gpu.handoff_rank import prompts_of
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.stock import PACKING
from baton.bench.gpu.stock_engines import Engines
from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

#: For activations and what libraries take besides.
_SPARE_BYTES = 4 << 30
#: Of ZeRO-3's parameters gathered at once.
_BUCKET_BYTES = 2 << 30


def measure(job: Job, results: Results) -> None:
    prepare_environment()
    gpu = ranks.local_rank()
    torch.cuda.set_device(gpu)
    results.step("starting the engine")
    began = time.monotonic()
    engines = Engines(job) if ranks.rank() == 0 else None
    results.step("building the trainer")
    start_distributed()
    if engines is not None:
        results.value("start seconds", round(time.monotonic() - began, 1))
        engines.generate(_prompts(job), 1, 1.0)
        engines.call("init_weight_transfer_engine", {"init_info": {}})
    ranks.together()
    awake = used_bytes(gpu)
    ranks.together()
    if engines is not None:
        engines.sleep()
    ranks.together()
    engine_bytes = awake - used_bytes(gpu)
    results.value("engine bytes", engine_bytes)
    trainer = Trainer(job)
    trained = trainer.build()
    peer = _Peer(job, results, trainer, trained, engines)
    results.step("warming up")
    trainer.warm_up(trained)
    results.step("cycles")
    for _ in range(job.cycles + 1):
        peer.cycle("", offload=True)
        peer.train()
        results.show()
    torch.cuda.empty_cache()
    total = results.record["machine"]["totalBytes"]
    room = min(ranks.gathered(total - used_bytes(gpu) - engine_bytes))
    results.value("room beside everything bytes", room)
    if room >= _SPARE_BYTES:
        results.step("cycles with nothing offloaded")
        for _ in range(job.cycles + 1):
            peer.cycle("staying: ", offload=False)
            trainer.step(trained)
            results.show()
    if engines is not None:
        engines.close()


def _prompts(job: Job) -> list[list[list[int]]]:
    """What the ranks of each engine ask for in Baton's run."""
    world = job.gpus
    return [
        [prompt for rank in range(engine * job.tp, (engine + 1) * job.tp) for prompt in prompts_of(rank, world)]
        for engine in range(job.engines)
    ]


class _Peer:
    """A rank's part of the cycles."""

    def __init__(self, job: Job, results: Results, trainer: Trainer, trained: Any, engines: Engines | None) -> None:
        self.job, self.results, self.trainer, self.trained, self.engines = job, results, trainer, trained, engines
        self.parked = _Parked(trainer.frozen if job.stage != 3 else [])
        self.taken: dict[str, float] = {}

    def cycle(self, prefix: str, *, offload: bool) -> None:
        """There and back; each step is a sample too, until the last rank has made it."""
        self.taken = {}
        ranks.together()
        began = self.at = time.perf_counter()
        if offload:
            self._offload()
        else:
            torch.cuda.empty_cache()
        self._mark("offload")
        if self.engines is not None:
            self.engines.wake("weights")
        self._mark("wake weights")
        self._transfer()
        self._mark("transfer")
        if self.engines is not None:
            self.engines.wake("kv_cache")
        self._mark("wake cache")
        used = used_bytes(ranks.local_rank())
        if self.engines is not None:
            wanted = _prompts(self.job)
            if self.engines.generate(wanted, 1, 1.0) != sum(map(len, wanted)):
                raise AssertionError("not every prompt has its first token")
        self._mark("generate")
        self.taken["to first tokens seconds"] = self.at - began
        self.taken["used while generating bytes"] = used
        began = self.at
        if self.engines is not None:
            self.engines.sleep()
        self._mark("sleep")
        if offload:
            self.trained.reload_states(non_blocking=True)
            self.parked.bring_back()
        self._mark("reload")
        self.taken["to first forward seconds"] = self.at - began
        ranks.sample(self.results, most={f"{prefix}{name}": value for name, value in self.taken.items()})

    def train(self) -> None:
        """What Baton's rank does between two handoffs."""
        taken: dict[str, float] = {}
        if self.job.reference:
            began = time.perf_counter()
            self.trainer.refer(self.trained)
            taken["reference seconds"] = time.perf_counter() - began
        taken["step seconds"] = self.trainer.step(self.trained)
        for _ in range(self.job.iterations - 1):
            taken["later step seconds"] = self.trainer.step(self.trained)
        ranks.sample(self.results, most=taken)

    def _mark(self, name: str) -> None:
        ranks.together()
        now = time.perf_counter()
        self.taken[f"{name} seconds"] = now - self.at
        self.at = now

    def _offload(self) -> None:
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

        include = [State.optim_states, State.hp_params, State.lp_grads]
        if self.job.stage == 3:
            include.append(State.contiguous_grad_buffer)
        self.trained.offload_states(include=include, pin_memory=True, non_blocking=True)
        self.parked.park()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def _transfer(self) -> None:
        """All ranks give the handles of their own GPU; rank 0 sends them to the engines."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine  # pyright: ignore

        engines = self.engines
        if engines is not None:
            engines.call("start_weight_update")
        module = self.trained.module
        if self.job.lora:
            module.merge_adapter()

        def send(info: Any) -> None:
            if engines is not None:
                engines.update(dict(vars(info)))

        for weights in self._weights():
            IPCWeightTransferEngine.trainer_send_weights(iter(weights), {"send_mode": send, **PACKING["unpacked"]})
        if self.job.lora:
            module.unmerge_adapter()
        if engines is not None:
            engines.call("finish_weight_update")

    def _weights(self) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """What is sent at once: everything, or one bucket after the other."""
        from baton.training.adapters import engine_weights

        named = [(weight.name, weight.parameter) for weight in engine_weights(self.trained.module)]
        if self.job.stage != 3:
            yield [(name, parameter.data) for name, parameter in named]
            return
        import deepspeed

        bucket: list[tuple[str, Any]] = []
        size = 0
        for number, (name, parameter) in enumerate(named):
            bucket.append((name, parameter))
            size += 2 * parameter.ds_numel
            if size >= _BUCKET_BYTES or number == len(named) - 1:
                with deepspeed.zero.GatheredParameters([one for _, one in bucket]):
                    yield [(one, whole.data) for one, whole in bucket]
                bucket, size = [], 0


class _Parked:
    """Frozen models whose parameters change between the GPU and pinned memory that is filled once."""

    def __init__(self, models: list[Any]) -> None:
        self._parameters = [parameter for model in models for parameter in model.parameters()]
        self._host: list[torch.Tensor] = []

    def park(self) -> None:
        if not self._host:
            self._host = [parameter.data.cpu().pin_memory() for parameter in self._parameters]
        for parameter, host in zip(self._parameters, self._host, strict=True):
            parameter.data = host

    def bring_back(self) -> None:
        for parameter, host in zip(self._parameters, self._host, strict=True):
            parameter.data = host.to("cuda", non_blocking=True)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(measure)
