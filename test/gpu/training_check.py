"""DeepSpeed in training memory on a real GPU: one rank, every ZeRO stage, paused and not paused.

    PYTHONPATH=python/src python3 test/gpu/training_check.py [SHAPE ...] [--size small|0.5b|1.5b] [--json FILE]

Each shape is trained as it is, and again with pauses at boundaries and between micro-batches, before which buffers
that are called dead are overwritten. Losses and gradient norms must be the same to the last bit. Exit code 1 when a
check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
from baton.training.arena import own_arena
from baton.training.holdings import Role
from baton.training.manifest import Weights
from baton.training.memory import TrainingMemory
from support import GIB, MIB, Checks, device_bytes_used, tensor_at
from transformers import AutoConfig, AutoModelForCausalLM

#: One rank, without a launcher; the same sums in the same order each time.
ENVIRONMENT = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29533",
    "NCCL_NVLS_ENABLE": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

SIZES = {
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 32_003},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151_936},
}
HEADS = {512: (8, 2), 896: (14, 2), 1536: (12, 2)}
STEPS = 4


@dataclass(frozen=True)
class Shape:
    """One way to train."""

    name: str
    stage: int
    optimizer: str = "fused"  # torch's AdamW, fused or foreach, or DeepSpeed's FusedAdam
    accumulation: int = 2
    fp32_gradients: bool = False
    checkpointing: bool = False
    frozen_half: bool = False  # the first half of the layers is not trained
    reference: bool = False  # a frozen model beside it
    model_inside: bool = True
    zero: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": 50_000_000, "overlap_comm": True}
        if self.stage == 3:
            zero["stage3_prefetch_bucket_size"] = 50_000_000
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": 0.5,
            "zero_optimization": zero | self.zero,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "bf16": {"enabled": True},
        }
        if self.fp32_gradients:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config


SHAPES = [
    Shape("zero3", 3),
    Shape("zero3-foreach-subgroups", 3, optimizer="foreach", zero={"sub_group_size": 10_000_000}),
    Shape("zero3-frozen-reference", 3, frozen_half=True, reference=True, accumulation=1),
    Shape("zero2", 2),
    Shape("zero2-model-outside", 2, model_inside=False, checkpointing=True),
    Shape("zero2-frozen-reference", 2, frozen_half=True, reference=True),
    Shape("zero1", 1, optimizer="foreach"),
    Shape("zero1-fp32-gradients", 1, fp32_gradients=True),
    Shape("zero0", 0),
    Shape("zero3-fusedadam", 3, optimizer="FusedAdam"),
    Shape("zero2-fusedadam", 2, optimizer="FusedAdam"),
]


class Trainer:
    def __init__(self, shape: Shape, size: str) -> None:
        hidden = SIZES[size]["hidden_size"]
        heads, kv_heads = HEADS[hidden]
        self.shape = shape
        self.model_config = AutoConfig.for_model(
            "qwen2",
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=True,
            attn_implementation="eager",  # flash attention adds up in an order of its own each time
            **SIZES[size],
        )

    def model(self, seed: int = 7, partition: bool = True) -> Any:
        torch.manual_seed(seed)
        zero3 = partition and self.shape.stage == 3
        init: Any = deepspeed.zero.Init(config_dict_or_path=self.shape.config()) if zero3 else contextlib.nullcontext()
        with init, torch.device("cuda"):
            made = AutoModelForCausalLM.from_config(self.model_config, dtype=torch.bfloat16)
        if self.shape.checkpointing:
            made.gradient_checkpointing_enable()
        return made

    def build(self, memory: TrainingMemory | None) -> tuple[Any, Any]:
        """Engine and reference model."""
        policy = None if self.shape.model_inside else self.model()
        with memory or contextlib.nullcontext():
            policy = policy or self.model()
            if self.shape.frozen_half:
                layers = policy.model.layers
                for layer in layers[: len(layers) // 2]:
                    layer.requires_grad_(False)
            trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
            if self.shape.optimizer == "FusedAdam":
                optimizer: Any = deepspeed.ops.adam.FusedAdam(trained, lr=1e-4)
            else:
                optimizer = torch.optim.AdamW(trained, lr=1e-4, **{self.shape.optimizer: True})  # pyright: ignore
            engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=self.shape.config())
            reference = None
            if self.shape.reference:
                reference = self.model(8, partition=False).cuda().requires_grad_(False)
        return engine, reference

    def step(self, engine: Any, number: int, middle: Any = None) -> list[str]:
        """Losses of the micro-batches and the gradient norm, as exact text."""
        found: list[str] = []
        for micro in range(self.shape.accumulation):
            generator = torch.Generator().manual_seed(1000 * number + micro)
            ids = torch.randint(0, 30_000, (1, 256), generator=generator).cuda()
            loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
            engine.backward(loss)
            found.append(float(loss.item()).hex())
            engine.step()
            if middle is not None and micro == 0 and self.shape.accumulation > 1:
                middle()
        found.append(float(engine.get_global_grad_norm() or 0.0).hex())
        return found


def free_everything() -> None:
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def stock(trainer: Trainer, extra: int) -> tuple[list[str], float]:
    """Losses and norms, and the median seconds of a later step."""
    engine, _ = trainer.build(None)
    course = [text for number in range(STEPS) for text in trainer.step(engine, number)]
    steps = [timed_step(trainer, engine, STEPS + number) for number in range(extra)]
    engine.destroy()
    return course, sorted(steps)[len(steps) // 2] if steps else 0.0


def timed_step(trainer: Trainer, engine: Any, number: int) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    trainer.step(engine, number)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def fill_dead(memory: TrainingMemory) -> None:
    dead = list(memory.holdings.of(Role.COMMUNICATION))
    dead += [held for held in memory.holdings.of(Role.GRADIENT) if not held.live]
    for held in dead:
        tensor_at(held.address, held.bytes).fill_(255)


class Handoffs:
    """Pauses and resumes, and what was seen each time."""

    def __init__(self, memory: TrainingMemory, base_bytes: int) -> None:
        self.memory, self.base_bytes = memory, base_bytes
        self.wrong: list[str] = []
        self.left: list[int] = []
        self.pause_rate: list[float] = []
        self.resume_rate: list[float] = []
        self.pause_seconds: list[float] = []
        self.prepare_seconds: list[float] = []
        self.resume_seconds: list[float] = []
        self.waited: list[float] = []
        self.saved = self.clean = self.dead = 0
        self.count = 0

    def once(self, *, background: bool = False, stages: bool = True) -> None:
        memory = self.memory
        self.count += 1
        begin = time.perf_counter()
        holdings = memory.prepare()
        self.prepare_seconds.append(time.perf_counter() - begin)
        fill_dead(memory)
        torch.cuda.synchronize()
        addresses = {held.key: held.address for held in holdings}
        if memory._unknown:
            self.wrong.append(f"blocks that nobody knows: {[size for _, size in memory._unknown]}")
        if memory._arena is None:
            memory._arena = own_arena(memory.pool)
            memory._arena.settle(memory.arena_bytes_needed())
            memory._arena.wait()
        used = device_bytes_used()
        seconds, reports = 0.0, []
        for stage in ("optimizer", "all") if stages else ("all",):
            begin = time.perf_counter()
            reports.append(memory.pause(stage, prepared=True))
            seconds += time.perf_counter() - begin
            if stage == "optimizer":
                for address, size in memory.engine_ranges()[:3]:  # readable, or this ends the process
                    tensor_at(address, min(size, 4096)).sum().item()
        while_paused = device_bytes_used()
        released = sum(report.released_bytes for report in reports)
        self.saved = sum(report.saved_bytes for report in reports)
        self.clean = sum(report.clean_bytes for report in reports)
        self.dead = sum(report.dead_bytes for report in reports)
        if abs(used - while_paused - released) > 4 * MIB:
            self.wrong.append(f"NVML fell by {used - while_paused} of {released} bytes")
        if reports[-1].outside_bytes or memory.pool.info().mapped_bytes:
            self.wrong.append(f"{reports[-1].outside_bytes} outside, {memory.pool.info().mapped_bytes} mapped")
        self.left.append(while_paused - self.base_bytes)
        self.pause_seconds.append(seconds)
        self.pause_rate.append(self.saved / seconds / 1e9)
        begin = time.perf_counter()
        report = memory.resume(wait=not background)
        self.resume_seconds.append(time.perf_counter() - begin)
        if not background:
            self.resume_rate.append(report.copied_bytes / self.resume_seconds[-1] / 1e9)
        if any(held.address != addresses[held.key] for held in memory.holdings):
            self.wrong.append("an address changed")


def paused(checks: Checks, trainer: Trainer, memory: TrainingMemory, want: list[str], base: int, extra: int) -> None:
    name = trainer.shape.name
    engine, reference = trainer.build(memory)
    memory.attach(engine, [] if reference is None else [reference])
    weights = Weights.of(memory)
    handoffs = Handoffs(memory, base)
    before = None if reference is None else torch.cat([p.flatten()[:64].clone() for p in reference.parameters()])
    handoffs.once()  # before the first step: no moments yet
    course: list[str] = []
    for number in range(STEPS):
        middle = handoffs.once if number in (1, 2) else None
        course += trainer.step(engine, number, middle)
        handoffs.once(background=number % 2 == 0)
    checks.that(f"{name}: losses and norms to the bit", course == want, f"{course} and {want}")
    checks.that(f"{name}: the optimizer state is complete", memory.complete)
    if reference is not None:
        after = torch.cat([p.flatten()[:64] for p in reference.parameters()])
        checks.that(f"{name}: the reference model is unchanged", before is not None and torch.equal(before, after))
        memory.wait()
        handoffs.once()
        checks.that(f"{name}: frozen weights are saved once", handoffs.clean > 0)
    memory.wait()
    segments = memory.pool.info().segments
    first = len(handoffs.left)
    steps: dict[bool, list[float]] = {False: [], True: []}
    waited: list[float] = []
    for number in range(extra):
        streaming = number % 2 == 1
        handoffs.once(background=streaming, stages=number % 4 < 2)
        steps[streaming].append(timed_step(trainer, engine, STEPS + number))
        returned = memory.wait()
        if streaming and returned is not None:
            waited.append(returned.waited_seconds)
    sums = weights.checksums(memory).plain.tolist()
    handoffs.once()
    checks.that(f"{name}: checksums of the weights", weights.checksums(memory).plain.tolist() == sums and any(sums))
    checks.that(f"{name}: {handoffs.count} pauses", not handoffs.wrong, "; ".join(dict.fromkeys(handoffs.wrong)))
    if extra:
        grown = handoffs.left[-1] - handoffs.left[first]
        checks.that(f"{name}: nothing grows over {extra} pauses", grown <= 0, f"{grown} bytes")
        more = memory.pool.info().segments - segments
        checks.that(f"{name}: the pool does not grow", more <= 0, f"{more} segments")
        for streaming, seconds in steps.items():
            what = "with state streaming in" if streaming else "after a whole resume"
            checks.figure(f"{name}: step ms {what}", 1e3 * sorted(seconds)[len(seconds) // 2])
        checks.figure(f"{name}: of which the optimizer waited ms", 1e3 * sorted(waited)[len(waited) // 2])
    figures = {
        "state GiB by the formula": memory.state_bytes() / GIB,
        "saved by a pause GiB": handoffs.saved / GIB,
        "dead GiB": handoffs.dead / GIB,
        "clean GiB": handoffs.clean / GIB,
        "left on the GPU above the context, GiB": handoffs.left[-1] / GIB,
        "prepare ms, median": 1e3 * sorted(handoffs.prepare_seconds)[handoffs.count // 2],
        "pause GB/s, best": max(handoffs.pause_rate),
        "pause GB/s, last": handoffs.pause_rate[-1],
        "pause s, last": handoffs.pause_seconds[-1],
        "resume GB/s, best": max(handoffs.resume_rate),
        "resume in the background returns after s": min(handoffs.resume_seconds),
        "arena GiB": memory.pool.info().arena_bytes / GIB,
    }
    for what, value in figures.items():
        checks.figure(f"{name}: {what}", value)
    memory.detach()
    engine.destroy()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--extra", type=int, default=20)
    parser.add_argument("--json")
    wanted = parser.parse_args()
    shapes = [shape for shape in SHAPES if not wanted.shapes or shape.name in wanted.shapes]
    # ZeRO-3 replaces torch's linear function in the whole process, and its replacement rounds differently.
    shapes.sort(key=lambda shape: -shape.stage)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    checks = Checks("training_check " + wanted.size)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")
    context = device_bytes_used()
    checks.figure("context GiB", context / GIB)
    deepspeed.init_distributed("nccl")
    torch.distributed.barrier()
    courses: dict[str, list[str]] = {}
    lets_go: dict[str, bool] = {}

    def run_stock(shape: Shape) -> None:
        before = torch.cuda.memory_allocated()
        courses[shape.name], seconds = stock(Trainer(shape, wanted.size), wanted.extra)
        free_everything()
        # DeepSpeed's ZeRO-3 and BF16 optimizers stay alive after destroy().
        lets_go[shape.name] = torch.cuda.memory_allocated() - before < 4 * MIB
        checks.figure(f"{shape.name}: stock step ms", seconds * 1e3)

    for shape in shapes:  # before there is any training memory in this process
        checks.run(run_stock, shape)
        free_everything()
    tensor_at(torch.ones(9, dtype=torch.uint8, device="cuda").data_ptr(), 9).fill_(1).sum().item()  # loads kernels
    free_everything()
    base = device_bytes_used()
    checks.figure("context, NCCL and kernels GiB", base / GIB)
    memory = TrainingMemory(0)
    checks.figure("segment MiB", memory.pool.segment_bytes / MIB)
    for shape in shapes:
        if shape.name in courses:
            before = memory.pool.info()
            checks.run(paused, checks, Trainer(shape, wanted.size), memory, courses[shape.name], base, wanted.extra)
            if memory.engine is not None:  # a check failed half-way
                with contextlib.suppress(Exception):
                    if memory.paused:
                        memory.resume()
                    memory.detach()
            free_everything()
            memory.pool.trim()
            left = memory.pool.info()
            if lets_go[shape.name]:
                checks.that(f"{shape.name}: nothing stays in the pool", left.segments <= before.segments, f"{left}")
    code = checks.end(wanted.json)
    torch.distributed.destroy_process_group()
    return code


if __name__ == "__main__":
    os._exit(main())
