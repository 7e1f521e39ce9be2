"""A reference model that is the same on all ranks but for one tensor, and the base of a policy with adapters."""

from __future__ import annotations

import copy
import os
from typing import Any

import common
import deepspeed
import torch
from common import RANK, Shape
from peft import LoraConfig, get_peft_model

from baton import native
from baton.training.holdings import Role
from baton.training.memory import TrainingMemory

SEGMENT_BYTES = int(os.environ["BATON_STANDIN_GRANULARITY"])
CYCLES = 3
SHAPES = [Shape("zero1", 1, accumulation=1), Shape("zero2", 2, accumulation=1), Shape("zero3", 3, accumulation=1)]


def maps_of_shared_files() -> set[int]:
    """Inodes of the shared files that this process maps."""
    with open("/proc/self/maps") as maps:
        return {int(line.split()[4]) for line in maps if "memfd:baton-frozen" in line}


def contents(module: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.data.clone() for name, parameter in module.named_parameters()}


def handoffs(engine: Any, memory: TrainingMemory, shape: Shape) -> dict[str, Any]:
    """What pauses say, with steps between them."""
    found: dict[str, Any] = {"saved": [], "clean": [], "verified": []}
    memory.pool.verify_frozen(native.EVERYTHING)
    for _ in range(CYCLES):
        common.train(engine, shape, 1)
        memory.prepare()
        first, second = memory.pause("optimizer"), memory.pause("all")
        found["saved"].append(first.saved_bytes + second.saved_bytes)
        found["clean"].append(first.clean_bytes + second.clean_bytes)
        found["verified"].append(memory.resume(wait=True).verified_bytes)
        memory.wait()
    return found


def reference(shape: Shape, memory: TrainingMemory) -> dict[str, Any]:
    with memory:
        engine = common.build(shape, memory)
        other = copy.deepcopy(common.model(shape)).requires_grad_(False)
        # Whatever the reason: this one must come back as it is on each rank.
        odd = dict(other.named_parameters())["model.norm.weight"]
        odd.data.fill_(1.0 + RANK)
    before = contents(other)
    memory.attach(engine, [other])
    held = memory.holdings.of(Role.REFERENCE)
    found: dict[str, Any] = {
        "shared_bytes": memory.shared_bytes(),
        "reference_bytes": sum(one.bytes for one in held),
        "odd_bytes": odd.numel() * odd.element_size(),
        "files": sorted(maps_of_shared_files()),
        **handoffs(engine, memory, shape),
    }
    after = contents(other)
    found["same"] = all(torch.equal(after[name], value) for name, value in before.items())
    found["arena_bytes"] = memory.arena_bytes_needed()
    memory.detach()
    return found


def adapters(shape: Shape, memory: TrainingMemory) -> dict[str, Any]:
    with memory:
        made = get_peft_model(common.model(shape), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        engine = deepspeed.initialize(model=made, optimizer=optimizer, config=shape.config())[0]
    memory.attach(engine)
    found = {
        "shared_bytes": memory.shared_bytes(),
        "base_bytes": memory.holdings.bytes_of(Role.FROZEN),
        **handoffs(engine, memory, shape),
    }
    memory.detach()
    return found


def main() -> None:
    deepspeed.init_distributed()
    memory = TrainingMemory(segment_bytes=SEGMENT_BYTES)
    results: dict[str, Any] = {}
    for shape in SHAPES:
        results[f"{shape.name} reference"] = reference(shape, memory)
        results[f"{shape.name} adapters"] = adapters(shape, memory)
    common.finish(results)


if __name__ == "__main__":
    main()
