"""What the default process group keeps on a GPU."""

from __future__ import annotations

from typing import Any

import torch.distributed


def let_go_of_barrier() -> None:
    """The group keeps the tensor of its last barrier, which may be one of the engine's construction, in the training
    memory: another barrier takes its place. Collective. Nothing is done where no collective has been made with it: the
    first would make a communicator, for which NCCL takes hundreds of MiB that stay."""
    if torch.distributed.is_initialized() and _was_used():
        torch.distributed.barrier()


def _was_used() -> bool:
    """The same on all ranks, because they make the same collectives."""
    group: Any = torch.distributed.distributed_c10d._get_default_group()
    try:
        return group._get_sequence_number_for_group() > 0
    except RuntimeError:  # not every backend counts
        return True
