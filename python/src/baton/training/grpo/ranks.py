"""The ranks of a run, and small sums over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This rank's number, how many there are, and the device that their process group works on."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> Ranks:
        """Of the default process group."""
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the CPU. Collective."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """The largest over ranks, on the CPU. Collective."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        moved = values.detach().to(self.device, copy=True)
        dist.all_reduce(moved, op=how)
        return moved.cpu()

    def barrier(self) -> None:
        """Collective. As a sum, because a NCCL barrier guesses the device."""
        self.sum(torch.zeros(1))
