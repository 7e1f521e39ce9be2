"""The peers of sync and sleep on several GPUs: vLLM's own sleep mode with tensor parallelism, and its IPC transfer.

The trainer's ranks are this one process, with the whole model on every GPU as under ZeRO-2: what the ranks of a real
one spend on gathering each other's handles is not counted.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from baton.bench.gpu.desk import PROMPTS
from baton.bench.gpu.model import tensors_of
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.stock_engines import Engines


def measure(job: Job, results: Results) -> None:
    gpus = range(job.gpus)
    results.step("starting the engine")
    began = time.monotonic()
    engines = Engines(job)
    results.value("start seconds", round(time.monotonic() - began, 1))
    prompts = [PROMPTS] * job.engines
    results.value("tokens before", engines.generate(prompts, 8, 0.0))
    results.step("sleep and wake")
    results.value("awake bytes", max(used_bytes(gpu) for gpu in gpus))
    for _ in range(job.cycles + 1):
        results.timed("sleep seconds", engines.sleep)
        results.sample("asleep bytes", max(used_bytes(gpu) for gpu in gpus))
        results.timed("wake weights seconds", lambda: engines.wake("weights"))
        results.timed("wake cache seconds", lambda: engines.wake("kv_cache"))
        results.show()
    results.step("making the trainer's weights")
    models = [weights_on(job, gpu) for gpu in gpus]
    results.value("copied bytes", sum(2 * tensor.numel() for tensor in models[0].values()))
    results.step("IPC transfer")
    engines.call("init_weight_transfer_engine", {"init_info": {}})
    for _ in range(job.cycles + 1):
        results.timed("ipc unpacked seconds", lambda: transfer(engines, models))
        # What was sent is held until the sender asks whether the receiver has let go of it.
        torch.cuda.ipc_collect()
        results.show()
    results.value("tokens after", engines.generate(prompts, 8, 0.0))
    engines.close()


def weights_on(job: Job, gpu: int) -> dict[str, torch.Tensor]:
    """In one allocation, as DeepSpeed flattens them."""
    shapes = tensors_of(job.model)
    total = sum(math.prod(shape) for shape in shapes.values())
    flat = torch.empty(total, dtype=torch.bfloat16, device=f"cuda:{gpu}").normal_(0, 0.02)
    found: dict[str, torch.Tensor] = {}
    at = 0
    for name, shape in shapes.items():
        elements = math.prod(shape)
        found[name] = flat[at : at + elements].view(*shape)
        at += elements
    return found


def transfer(engines: Engines, models: list[dict[str, torch.Tensor]]) -> None:
    """One update of all weights; the engines have them when this returns. What the ranks' own
    `IPCWeightTransferEngine.trainer_send_weights` sends once they have gathered their handles."""
    from torch.multiprocessing.reductions import reduce_tensor

    uuids = [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in range(len(models))]
    handles: list[dict[str, Any]] = [
        {uuid: reduce_tensor(model[name])[1] for uuid, model in zip(uuids, models, strict=True)} for name in models[0]
    ]
    info = {
        "names": list(models[0]),
        "dtype_names": ["bfloat16"] * len(models[0]),
        "shapes": [list(tensor.shape) for tensor in models[0].values()],
        "ipc_handles": handles,
        "packed": False,
    }
    engines.call("start_weight_update")
    engines.update(info)
    engines.call("finish_weight_update")


if __name__ == "__main__":
    main(measure)
