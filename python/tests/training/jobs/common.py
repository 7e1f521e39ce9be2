"""What the jobs share: a small model, an engine, a training loop with places to pause."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from baton import native
from baton.training.holdings import Role
from baton.training.memory import TrainingMemory

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
#: Parameters of every size, none of them a multiple of 3.
VOCABULARY = 130


@dataclass(frozen=True)
class Shape:
    """One way to train."""

    name: str
    stage: int
    dtype: str = "bfloat16"
    accumulation: int = 4
    threshold: int | None = 0
    fp32_gradients: bool = False
    frozen_embedding: bool = False
    optimizer: str = "adamw"
    zero: dict[str, Any] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": 20_000, **self.zero}
        if self.stage == 3:
            zero["stage3_prefetch_bucket_size"] = 20_000
            if self.threshold is not None:
                zero["stage3_param_persistence_threshold"] = self.threshold
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": 0.5,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if self.dtype == "bfloat16":
            config["bf16"] = {"enabled": True}
        if self.fp32_gradients:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config


def model(shape: Shape) -> Any:
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=40,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    torch.manual_seed(7)
    made = AutoModelForCausalLM.from_config(config, dtype=shape.torch_dtype)
    if shape.frozen_embedding:
        made.get_input_embeddings().weight.requires_grad_(False)
    return made


def build(shape: Shape, memory: TrainingMemory | None, *, model_inside: bool = True) -> Any:
    """The engine, built inside `memory` when there is one; the model too unless it is said not to be."""
    outside = None if model_inside else model(shape)
    with memory or contextlib.nullcontext():
        policy = model(shape) if outside is None else outside
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        if shape.optimizer == "adamw":
            optimizer: Any = torch.optim.AdamW(trained, lr=1e-2)
        else:
            optimizer = torch.optim.SGD(trained, lr=1e-2)
        engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=shape.config())
    return engine


@dataclass
class Course:
    """What a training did, to the last bit."""

    losses: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[str]]:
        return {"losses": self.losses, "norms": self.norms}


def train(
    engine: Any,
    shape: Shape,
    steps: int,
    *,
    middle: Callable[[int], None] = lambda _: None,
    after: Callable[[int], None] = lambda _: None,
    before_step: Callable[[int], None] = lambda _: None,
) -> Course:
    """`middle(step)` is called between two micro-batches of a step, `after(step)` when it is done."""
    course = Course()
    for step in range(steps):
        for micro in range(shape.accumulation):
            generator = torch.Generator().manual_seed(1000 * step + 10 * micro + RANK)
            ids = torch.randint(0, VOCABULARY, (1, 12), generator=generator)
            loss = engine(input_ids=ids, labels=ids).loss
            engine.backward(loss)
            course.losses.append(float(loss.item()).hex())
            del loss
            if micro == shape.accumulation - 1:
                before_step(step)
            engine.step()
            if micro == 1 and shape.accumulation > 2:
                middle(step)
        course.norms.append(float(engine.get_global_grad_norm() or 0.0).hex())
        after(step)
    return course


_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def readable(address: int) -> bool:
    """Whether this process could read the byte at `address`, without trying it for real."""
    byte = ctypes.create_string_buffer(1)
    local = _IoVec(ctypes.addressof(byte), 1)
    remote = _IoVec(address, 1)
    read = _libc.process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    return read == 1


def fill_dead_with_nan(memory: TrainingMemory, *, only_discarded: bool = False) -> int:
    """Overwrites every buffer that a pause would not save; returns the bytes."""
    holdings = list(memory.holdings.of(Role.COMMUNICATION))
    if not only_discarded:
        holdings += [held for held in memory.holdings.of(Role.GRADIENT) if not held.live]
    for held in holdings:
        # 0xFF in every byte is a NaN in every floating point type.
        ctypes.memset(held.address, 0xFF, held.bytes)
    return sum(held.bytes for held in holdings)


def everything_zero(memory: TrainingMemory) -> bool:
    """Whether the gradient buffers that came back without being saved are zeros."""
    return all(
        not any(ctypes.string_at(held.address, held.bytes))
        for held in memory.holdings.of(Role.GRADIENT)
        if not held.live
    )


def segments(memory: TrainingMemory, ranges: list[tuple[int, int]]) -> set[int]:
    """Numbers of the pool's segments that these (address, bytes) touch."""
    base, size = memory.pool.base, memory.pool.segment_bytes
    return {
        segment
        for address, length in ranges
        for segment in range((address - base) // size, (address - base + length - 1) // size + 1)
    }


def pool_stats(memory: TrainingMemory) -> native.PoolStats:
    return memory.pool.info()


def shared_folder() -> str:
    """One new folder for all ranks, inside the test's own."""
    name = [tempfile.mkdtemp(dir=os.environ["JOB_OUT"]) if RANK == 0 else ""]
    torch.distributed.broadcast_object_list(name)
    return name[0]


def finish(results: dict[str, Any]) -> None:
    """Writes this rank's results and ends the process in good order."""
    Path(os.environ["JOB_OUT"], f"rank{RANK}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
