"""What the jobs do with an engine's state: look at all of it, and give it away as a rollout does."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from training.jobs import common

from baton.training.holdings import Role
from baton.training.memory import TrainingMemory


def whole(engine: Any, trained: bool = True) -> dict[str, torch.Tensor]:
    """A copy of every (trained) parameter in full."""
    named = [(name, each) for name, each in engine.module.named_parameters() if each.requires_grad or not trained]
    with deepspeed.zero.GatheredParameters([parameter for _, parameter in named]):
        return {name: parameter.detach().clone() for name, parameter in named}


def handoff(memory: TrainingMemory, wait: bool) -> dict[str, bool]:
    """What a rollout does to the training; what is called dead is overwritten meanwhile."""
    memory.prepare()
    live = any(held.live for held in memory.holdings.of(Role.GRADIENT))
    common.fill_dead_with_nan(memory)
    memory.pause("optimizer")
    memory.pause("all")
    readable = [held.names[0] for held in memory.holdings if common.readable(held.address)]
    torch.distributed.barrier()
    memory.resume(wait=wait)
    common.fill_dead_with_nan(memory, only_discarded=True)
    return {"gradients_live": live, "all_away": not readable}
