"""The DeepSpeed training that offload and handoff are measured on: the same for Baton and for its peers."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import torch

from baton.bench.gpu.part import Job, simulated, synchronize

_BUCKET_ELEMENTS = 50_000_000
_LEARNING_RATE = 1e-5


def prepare_environment() -> None:
    """As a launcher would, for one rank; before DeepSpeed is imported."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    if not simulated():
        # DeepSpeed cannot read "9.0a", which some images set.
        os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())


class Trainer:
    """`build` and `step`; gradients are checkpointed, so that activations are small."""

    def __init__(self, job: Job) -> None:
        from transformers import AutoConfig

        self.job = job
        self.device = "cpu" if simulated() else "cuda"
        self.model_config = AutoConfig.from_pretrained(job.model)
        generator = torch.Generator().manual_seed(0)
        shape = (job.micro_batch, job.length)
        self.ids = torch.randint(0, self.model_config.vocab_size, shape, generator=generator).to(self.device)

    def config(self) -> dict[str, Any]:
        bucket = _BUCKET_ELEMENTS if not simulated() else 2**18
        zero: dict[str, Any] = {"stage": self.job.stage, "overlap_comm": not simulated(), "contiguous_gradients": True}
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        if self.job.stage == 3:
            zero["stage3_prefetch_bucket_size"] = bucket
        return {
            "train_micro_batch_size_per_gpu": self.job.micro_batch,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": True},
            "steps_per_print": 10**9,
        }

    def build(self) -> Any:
        """A DeepSpeed engine with random weights."""
        import deepspeed
        from transformers import AutoModelForCausalLM

        torch.manual_seed(7)
        init: Any = contextlib.nullcontext()
        if self.job.stage == 3:
            init = deepspeed.zero.Init(config_dict_or_path=self.config())
        with init, torch.device(self.device):
            model: Any = AutoModelForCausalLM.from_config(self.model_config, dtype=torch.bfloat16)
        model.gradient_checkpointing_enable()
        engine, *_ = deepspeed.initialize(model=model, optimizer=self._optimizer(model), config=self.config())
        return engine

    def _optimizer(self, model: Any) -> Any:
        if simulated():
            return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
        if self.job.stage == 3:
            # The only one with which DeepSpeed's own offload_states works under ZeRO-3.
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(model.parameters(), lr=_LEARNING_RATE)
        return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def step(self, engine: Any) -> float:
        """One optimizer step; its seconds."""
        synchronize()
        began = time.perf_counter()
        loss = engine(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
        synchronize()
        return time.perf_counter() - began


def start_distributed() -> None:
    import deepspeed

    deepspeed.init_distributed("gloo" if simulated() else "nccl")
