"""LoRA under DeepSpeed: what an engine would get of a policy with adapters, over many handoffs."""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import common
import deepspeed
import torch
from common import Shape
from extent import ALL
from peft import LoraConfig, get_peft_model

from baton.errors import BatonError
from baton.training.adapters import engine_weights
from baton.training.holdings import Role
from baton.training.manifest import Weights
from baton.training.memory import TrainingMemory

SEGMENT_BYTES = int(os.environ["BATON_STANDIN_GRANULARITY"])
FEW, MANY, STEP_EVERY = (int(argument) for argument in sys.argv[1:])
ALL_SHAPES = [
    (Shape("zero1-fp32", 1, dtype="float32", accumulation=1), FEW),
    (Shape("zero2", 2, accumulation=1), MANY),
    (Shape("zero3", 3, accumulation=1), FEW),
    (Shape("zero3-default-threshold", 3, threshold=None, accumulation=1), FEW),
    (Shape("zero3-fp32", 3, dtype="float32", accumulation=1), FEW),
]
SHAPES = ALL_SHAPES if ALL else ALL_SHAPES[1:3]


def policy(shape: Shape) -> Any:
    made = get_peft_model(
        common.model(shape),
        LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:  # zeros at first: nothing to merge
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def build(shape: Shape, memory: TrainingMemory) -> Any:
    with memory:
        made = policy(shape)
        trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        return deepspeed.initialize(model=made, optimizer=optimizer, config=shape.config())[0]


def whole(engine: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter in full."""
    named = list(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters([parameter for _, parameter in named]):
        return {name: parameter.data.clone() for name, parameter in named}


def merged_by_peft(shape: Shape, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """peft's own merge of these weights, in fp32, rounded once."""
    fresh = policy(Shape("fresh", 0, dtype="float32"))
    fresh.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    merged = copy.deepcopy(fresh).merge_and_unload()
    return {name: value.to(shape.torch_dtype) for name, value in merged.named_parameters()}


def handed_over(engine: Any, memory: TrainingMemory) -> dict[str, torch.Tensor]:
    """What lies where the manifest says, put together over the ranks: the weights as an engine would pull them."""
    weights = Weights.of(memory)
    found = {}
    pieces = {piece.tensor: piece for piece in weights.pieces}
    for index, (name, shape) in enumerate(zip(weights.names, weights.shapes, strict=True)):
        dtype = getattr(torch, weights.dtypes[index])
        elements = torch.Size(shape).numel()
        full = torch.zeros(elements, dtype=torch.float32)
        piece = pieces.get(index)
        if piece is not None:
            address = memory.pool.base + piece.offset_bytes
            raw = bytearray(common.ctypes.string_at(address, piece.elements * dtype.itemsize))
            full[piece.start : piece.start + piece.elements] = torch.frombuffer(raw, dtype=dtype).float()
        if engine.zero_optimization_stage() == 3:
            torch.distributed.all_reduce(full)
        found[name] = full.view(shape).to(dtype)
    return found


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference in units of the rounding of each element."""
    worst = 0.0
    for name, value in theirs.items():
        unit = torch.finfo(value.dtype).eps * value.double().abs().clamp(min=1e-3)
        worst = max(worst, float(((ours[name].double() - value.double()).abs() / unit).max()))
    return worst


def code_of(action: Any) -> str | None:
    try:
        action()
    except BatonError as error:
        return error.code
    return None


def one(shape: Shape, memory: TrainingMemory, cycles: int) -> dict[str, Any]:
    engine = build(shape, memory)
    base = {name: value for name, value in whole(engine).items() if "lora_" not in name}
    memory.attach(engine)
    # In the middle, where no segment is shared with anything else.
    merged = [held.address + held.bytes // 2 for held in memory.holdings.of(Role.MERGED)]
    found: dict[str, Any] = {
        "names": sorted(weight.name for weight in engine_weights(engine.module))
        == sorted(name for name, _ in common.model(shape).named_parameters()),
        "merged_away_at_first": not any(common.readable(address) for address in merged),
        "differences": [],
        "epochs": [],
        "saved_bytes": [],
        "merged_away": True,
        "kept_merged": True,
    }
    adapted = [held for held in memory.holdings.of(Role.FROZEN) if not held.for_engine]
    found["adapted"] = len(adapted)
    for cycle in range(cycles):
        if cycle % STEP_EVERY == 0:
            common.train(engine, shape, 1)
        memory.prepare()
        if cycle % STEP_EVERY in (0, STEP_EVERY - 1):
            theirs = merged_by_peft(shape, whole(engine))
            found["differences"].append(difference(handed_over(engine, memory), theirs))
            # Of other weights each time: the adapters have changed, so the merged weights have.
            found["epochs"].append(float(sum(value.double().abs().sum() for value in theirs.values())))
        first = memory.pause("optimizer")
        found["kept_merged"] &= all(common.readable(address) for address in merged)
        second = memory.pause("all")
        found["saved_bytes"].append(first.saved_bytes + second.saved_bytes)
        memory.resume(wait=cycle % 2 == 0)
        memory.wait()
        found["merged_away"] &= not any(common.readable(address) for address in merged)
    after = whole(engine)
    found["base_the_same"] = all(torch.equal(after[name], value) for name, value in base.items())
    found["shared_bytes"] = memory.shared_bytes()
    found["base_bytes"] = memory.holdings.bytes_of(Role.FROZEN)
    with engine.module.disable_adapter():
        found["adapter_off"] = code_of(memory.prepare)
    memory.detach()
    return found


def main() -> None:
    deepspeed.init_distributed()
    # Segments so small that the merged weights have some of their own.
    memory = TrainingMemory(segment_bytes=SEGMENT_BYTES)
    results = {shape.name: one(shape, memory, cycles) for shape, cycles in SHAPES}
    common.finish(results)


if __name__ == "__main__":
    main()
