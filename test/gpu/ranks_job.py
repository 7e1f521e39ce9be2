"""One rank of ranks_check.py: trains as it is, then in training memory with a handoff after every step.

Before each pause the buffers that are called dead are overwritten. All ranks pause at once, and take back at once.
Rank 0 writes what all of them found.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from baton.bench.gpu.part import simulated
from baton.training.arena import own_arena
from baton.training.holdings import Role
from baton.training.manifest import Weights
from baton.training.memory import TrainingMemory
from support import MIB, device_bytes_used, tensor_at
from transformers import AutoConfig, AutoModelForCausalLM

RANK, WORLD, GPU = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
#: Of the model: no dimension is a multiple of 3, and the vocabulary none of 2.
SIZES = {
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 32_003},
    "tiny": {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2, "vocab_size": 515},
}
#: A pause between two micro-batches in these steps.
MIDDLE = (1, 2)


class Training:
    def __init__(self, stage: int) -> None:
        self.stage = stage
        self.size = SIZES["tiny" if simulated() else "small"]
        self.device = "cpu" if simulated() else f"cuda:{GPU}"

    def config(self) -> dict[str, Any]:
        bucket = 2**14 if simulated() else 50_000_000
        zero: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": bucket, "overlap_comm": not simulated()}
        if self.stage == 3:
            zero |= {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": 0}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            "bf16": {"enabled": True},
        }

    def build(self, memory: TrainingMemory | None) -> Any:
        torch.manual_seed(7)
        shape = AutoConfig.for_model(
            "qwen2",
            num_attention_heads=8,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            attn_implementation="eager",  # flash attention adds up in an order of its own each time
            **self.size,
        )
        init: Any = contextlib.nullcontext()
        if self.stage == 3:
            init = deepspeed.zero.Init(config_dict_or_path=self.config())
        with memory or contextlib.nullcontext():
            with init, torch.device(self.device):
                policy = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
            fused = {} if simulated() else {"fused": True}
            optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, **fused)  # pyright: ignore
            return deepspeed.initialize(model=policy, optimizer=optimizer, config=self.config())[0]

    def step(self, engine: Any, number: int, middle: Any = None) -> list[str]:
        """Losses of the two micro-batches and the gradient norm, as exact text."""
        found: list[str] = []
        for micro in range(2):
            generator = torch.Generator().manual_seed(10_000 * number + 100 * micro + RANK)
            length = 16 if simulated() else 256
            ids = torch.randint(0, self.size["vocab_size"], (1, length), generator=generator).to(self.device)
            loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
            engine.backward(loss)
            found.append(float(loss.item()).hex())
            engine.step()
            if middle is not None and micro == 0:
                middle()
        found.append(float(engine.get_global_grad_norm() or 0.0).hex())
        return found


def fill_dead(memory: TrainingMemory) -> None:
    dead = list(memory.holdings.of(Role.COMMUNICATION))
    dead += [held for held in memory.holdings.of(Role.GRADIENT) if not held.live]
    for held in dead:
        if simulated():
            ctypes.memset(held.address, 255, held.bytes)
        else:
            tensor_at(held.address, held.bytes).fill_(255)


class Handoffs:
    """Pauses and resumes of all ranks at once, and what was seen on this one."""

    def __init__(self, memory: TrainingMemory) -> None:
        self.memory = memory
        self.wrong: list[str] = []
        self.left: list[int] = []
        self.segments: list[int] = []
        self.live: list[int] = []
        self.pause_seconds: list[float] = []
        self.resume_seconds: list[float] = []

    def once(self, *, background: bool = False) -> None:
        memory = self.memory
        holdings = memory.prepare()
        fill_dead(memory)
        addresses = {held.key: held.address for held in holdings}
        if memory._arena is None:
            memory._arena = own_arena(memory.pool)
            memory._arena.settle(memory.arena_bytes_needed())
            memory._arena.wait()
        together()
        used = device_bytes_used(GPU)
        began = time.perf_counter()
        reports = [memory.pause(stage, prepared=True) for stage in ("optimizer", "all")]
        self.pause_seconds.append(time.perf_counter() - began)
        paused = device_bytes_used(GPU)
        released = sum(report.released_bytes for report in reports)
        if abs(used - paused - released) > 4 * MIB:
            self.wrong.append(f"NVML fell by {used - paused} of {released} bytes")
        if reports[-1].outside_bytes or memory.pool.info().mapped_bytes:
            self.wrong.append(f"{reports[-1].outside_bytes} outside, {memory.pool.info().mapped_bytes} mapped")
        self.left.append(paused)
        together()
        began = time.perf_counter()
        memory.resume(wait=not background)
        self.resume_seconds.append(time.perf_counter() - began)
        if any(held.address != addresses[held.key] for held in memory.holdings):
            self.wrong.append("an address changed")
        pool = memory.pool.info()
        self.segments.append(pool.segments)
        self.live.append(pool.live_bytes)


def together() -> None:
    if not simulated():
        torch.cuda.synchronize()
    dist.barrier()


def free_everything() -> None:
    gc.collect()
    if not simulated():
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--zero", type=int, required=True)
    parser.add_argument("--handoffs", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    deepspeed.init_distributed("gloo" if simulated() else "nccl")
    if not simulated():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.cuda.set_device(GPU)
    training = Training(options.zero)
    engine = training.build(None)
    want = [text for number in range(options.handoffs) for text in training.step(engine, number)]
    engine.destroy()
    del engine
    free_everything()
    memory = TrainingMemory(GPU)
    engine = training.build(memory)
    memory.attach(engine)
    weights = Weights.of(memory)
    weights.checksums(memory)  # takes GPU memory of its own, once
    handoffs = Handoffs(memory)
    handoffs.once()  # before the first step: no moments yet
    course: list[str] = []
    for number in range(options.handoffs):
        course += training.step(engine, number, handoffs.once if number in MIDDLE else None)
        handoffs.once(background=number % 2 == 0)
    memory.wait()
    sums = weights.checksums(memory).plain.tolist()
    handoffs.once()
    found = {
        "rank": RANK,
        "backend": dist.get_backend(),
        "course": course == want,
        "steps": len(course) // 3,
        "first difference": next((at for at, (a, b) in enumerate(zip(course, want, strict=True)) if a != b), None),
        "complete": memory.complete,
        "checksums": weights.checksums(memory).plain.tolist() == sums and any(sums),
        "wrong": list(dict.fromkeys(handoffs.wrong)),
        "left": handoffs.left,
        "segments": handoffs.segments,
        "live": handoffs.live,
        "pause seconds": sorted(handoffs.pause_seconds)[len(handoffs.pause_seconds) // 2],
        "resume seconds": sorted(handoffs.resume_seconds)[len(handoffs.resume_seconds) // 2],
    }
    everybody: list[Any] = [None] * WORLD
    dist.all_gather_object(everybody, found)
    if RANK == 0:
        options.out.write_text(json.dumps(everybody))
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may end a process that Python takes down at leisure.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
