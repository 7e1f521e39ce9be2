"""What a paused trainer leaves on its GPU, and what each of its parts has taken: context, NCCL, kernels, torch.

    left_costs.py FOLDER [--stages 2 3] [--json FILE] [--no-barrier]       the bench's 1.5B shape

Bytes as NVML counts them, less those of torch's allocator and of the pool's mapped memory, each time over a bare CUDA
context; then what asking libraries and the driver to give back changes while training is paused. Explains the bench's row "left".
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20
#: CUlimit, in cuda.h.
STACK_SIZE, PRINTF_FIFO_SIZE, MALLOC_HEAP_SIZE = 0, 1, 2
#: Qwen2.5-1.5B.
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}


class Meter:
    """Prints and keeps what is in use beside torch's allocator, step by step."""

    def __init__(self, used: Any) -> None:
        self._used = used
        self.context = 0
        #: The training memory's, when there is one.
        self.pool: Any = None
        self.rows: list[tuple[str, float, float]] = []

    def read(self, name: str) -> None:
        import torch

        torch.cuda.synchronize()
        used, reserved = self._used(), torch.cuda.memory_reserved()
        if self.pool is not None:
            # Torch counts what it has of the pool whether it is mapped or not.
            info = self.pool.info()
            reserved += info.mapped_bytes - info.live_bytes
        if not self.context:
            self.context = used
            print(f"a bare context: {used / MIB:.0f} MiB in use", flush=True)
        beside = (used - self.context - reserved) / MIB
        grown = beside - (self.rows[-1][1] if self.rows else 0)
        self.rows.append((name, beside, reserved / MIB))
        print(f"{beside:9.0f} MiB  {grown:+8.0f}  torch {reserved / MIB:9.0f}  {name}", flush=True)


def driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def limits() -> dict[int, int]:
    found = {}
    for limit in (STACK_SIZE, PRINTF_FIFO_SIZE, MALLOC_HEAP_SIZE):
        value = ctypes.c_size_t()
        driver().cuCtxGetLimit(ctypes.byref(value), limit)
        found[limit] = value.value
    return found


def reset_stack() -> None:
    """The memory of threads' stacks is kept at the largest that a kernel asked for; setting its size anew frees it."""
    size = limits()[STACK_SIZE]
    print("stack size", size, "->", driver().cuCtxSetLimit(STACK_SIZE, ctypes.c_size_t(size)), flush=True)


def trim_pools() -> None:
    pool = ctypes.c_void_p()
    print("default pool", driver().cuDeviceGetDefaultMemPool(ctypes.byref(pool), 0), flush=True)
    print("trim", driver().cuMemPoolTrimTo(pool, ctypes.c_size_t(0)), flush=True)
    print("trim graphs", driver().cuDeviceGraphMemTrim(0), flush=True)


def read_after(meter: Meter, owner: Any, name: str, what: str) -> None:
    """Reads the meter once, after the first call of this method."""
    method = getattr(owner, name)

    def first(*given: Any, **named: Any) -> Any:
        setattr(owner, name, method)
        made = method(*given, **named)
        meter.read(what)
        return made

    setattr(owner, name, first)


def optimizer_class(stage: int) -> Any:
    if stage == 3:
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam
    from torch.optim import AdamW

    return AdamW


def steps_of_initialize(stage: int) -> list[tuple[Any, str]]:
    """Of `deepspeed.initialize`, one inside of the other; what none of them takes is before or after them."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    whole = [
        (DeepSpeedEngine, "_broadcast_model"),
        (DeepSpeedEngine, "_configure_distributed_model"),
        (DeepSpeedEngine, "_do_optimizer_sanity_check"),
        (DeepSpeedEngine, "_configure_zero_optimizer"),
    ]
    if stage == 3:
        return [(DeepSpeedZeroOptimizer_Stage3, "_setup_for_real_optimizer"), *whole]
    return [(DeepSpeedZeroOptimizer, "initialize_optimizer_states"), *whole]


def measure(folder: Path, stage: int, *, barrier: bool) -> None:
    import torch

    from baton.bench.gpu.part import Job, used_bytes
    from baton.bench.gpu.trainer import Trainer, prepare_environment, start_distributed

    prepare_environment()
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")
    meter = Meter(used_bytes)
    meter.read("context")
    square = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
    meter.read("a tensor")
    square.matmul(square)
    meter.read("a product (cuBLAS)")
    start_distributed()
    meter.read("process group")
    if barrier:
        torch.distributed.barrier(device_ids=[0])
        meter.read("first collective (NCCL)")
    del square
    from baton.training.memory import TrainingMemory

    memory = TrainingMemory(0)
    meter.pool = memory.pool
    trainer = Trainer(Job(str(folder / "result.json"), str(folder), 1, stage=stage))
    read_after(meter, trainer, "_model", "the model")
    read_after(meter, trainer, "_optimizer", "the optimizer")
    read_after(meter, optimizer_class(stage), "step", "the optimizer's first step")
    for owner, name in steps_of_initialize(stage):
        read_after(meter, owner, name, f"{owner.__name__}.{name}")
    with memory:
        engine = trainer.build()
    meter.read("engine built")
    memory.attach(engine)
    meter.read("attached")
    loss = engine(input_ids=trainer.ids, labels=trainer.ids, use_cache=False).loss
    meter.read("forward")
    engine.backward(loss)
    meter.read("backward")
    engine.step()
    meter.read("step")
    del loss
    for _ in range(3):
        trainer.step(engine)
    meter.read("three more steps")
    for name in ("paused", "paused again"):
        memory.prepare()
        memory.pause("all", prepared=True)
        meter.read(name)
        if name == "paused":
            gc.collect()
            torch.cuda.empty_cache()
            meter.read("after empty_cache")
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            meter.read("without cuBLAS's workspaces")
            print("limits", limits())
            reset_stack()
            meter.read("stack size set anew")
            trim_pools()
            meter.read("pools trimmed")
        memory.resume()
        meter.read("resumed")
        print("step seconds", [round(trainer.step(engine), 4) for _ in range(3)])
        meter.read("three more steps")
    (folder / "rows.json").write_text(json.dumps({"context": meter.context, "rows": meter.rows}))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--json")
    parser.add_argument("--part", type=int)
    parser.add_argument("--no-barrier", action="store_true", help="no collective before DeepSpeed's own")
    options = parser.parse_args()
    if options.part is not None:
        measure(options.folder, options.part, barrier=not options.no_barrier)
        return 0
    rows, failed = {}, 0
    for stage in options.stages:
        folder = options.folder.resolve() / f"zero{stage}"
        folder.mkdir(parents=True, exist_ok=True)
        print(f"== ZeRO-{stage}", flush=True)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        words = [str(folder), "--part", str(stage), *(["--no-barrier"] if options.no_barrier else [])]
        failed |= subprocess.run([sys.executable, __file__, *words]).returncode
        if (folder / "rows.json").exists():
            rows[f"zero{stage}"] = json.loads((folder / "rows.json").read_text())
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
