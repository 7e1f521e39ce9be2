"""The DeepSpeed training that offload and handoff are measured on: the same for Baton and for its peers."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import torch

from baton.bench.gpu.part import Job, simulated, synchronize
from baton.bench.gpu.ranks import rank

_BUCKET_ELEMENTS = 50_000_000
_WARMING_STEPS = 6
_LEARNING_RATE = 1e-5


def prepare_environment() -> None:
    """As a launcher would, for one rank, where there was none; before DeepSpeed is imported."""
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
    """`build` and `step`; gradients are checkpointed, so that activations are small.

    `frozen`: the reference model, when the job has one and the policy is not its own (with its adapters off).
    """

    def __init__(self, job: Job) -> None:
        from transformers import AutoConfig

        self.job = job
        self.device = "cpu" if simulated() else "cuda"
        self.model_config = AutoConfig.from_pretrained(job.model)
        generator = torch.Generator().manual_seed(rank())
        shape = (job.micro_batch, job.length)
        self.ids = torch.randint(0, self.model_config.vocab_size, shape, generator=generator).to(self.device)
        self.frozen: list[Any] = []

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

        model = self._model()
        if self.job.lora:
            from peft import LoraConfig, get_peft_model

            wanted = LoraConfig(r=self.job.lora, lora_alpha=2 * self.job.lora, target_modules="all-linear")
            model = get_peft_model(model, wanted, autocast_adapter_dtype=False)
            model.enable_input_require_grads()  # else no input of a checkpointed layer needs a gradient
        model.gradient_checkpointing_enable()
        engine, *_ = deepspeed.initialize(model=model, optimizer=self._optimizer(model), config=self.config())
        if self.job.reference and not self.job.lora:
            self.frozen = [self._reference()]
        return engine

    def _model(self) -> Any:
        import deepspeed
        from transformers import AutoModelForCausalLM

        torch.manual_seed(7)
        init: Any = contextlib.nullcontext()
        if self.job.stage == 3:
            init = deepspeed.zero.Init(config_dict_or_path=self.config())
        with init, torch.device(self.device):
            return AutoModelForCausalLM.from_config(self.model_config, dtype=torch.bfloat16)

    def _reference(self) -> Any:
        """A frozen copy of the policy as it started; partitioned where the policy is."""
        import deepspeed

        model = self._model().eval().requires_grad_(False)
        if self.job.stage != 3:
            return model
        kept = ("train_micro_batch_size_per_gpu", "bf16", "zero_optimization", "steps_per_print")
        engine: Any = deepspeed.initialize(model=model, config={key: self.config()[key] for key in kept})[0]
        engine.module.eval()
        return engine

    def refer(self, engine: Any) -> None:
        """A forward pass of the reference model over this rank's batch."""
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if self.job.lora:
                stack.enter_context(engine.module.disable_adapter())
            model = engine if self.job.lora else self.frozen[0]
            model(input_ids=self.ids, use_cache=False)
        synchronize()

    def _optimizer(self, model: Any) -> Any:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if simulated():
            return torch.optim.AdamW(trained, lr=_LEARNING_RATE)
        if self.job.stage == 3:
            # The only one with which DeepSpeed's own offload_states works under ZeRO-3.
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(trained, lr=_LEARNING_RATE)
        return torch.optim.AdamW(trained, lr=_LEARNING_RATE, fused=True)

    def warm_up(self, engine: Any) -> None:
        """The first steps of a process, which are no measure."""
        for _ in range(_WARMING_STEPS):
            self.step(engine)

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
