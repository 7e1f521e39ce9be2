"""What the ranks of a part do together. Alone, a rank is all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from baton.bench.gpu.part import Results, synchronize


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Also the number of this rank's GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def resident_bytes() -> int:
    """Of host memory, by this process, as the kernel counts it; shared memory that it has touched included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def together() -> None:
    """All ranks have done what they had queued on their GPUs, and go on at the same time."""
    synchronize()
    if world() > 1:
        torch.distributed.barrier()
        synchronize()


def gathered(value: Any) -> list[Any]:
    """Everybody's, in the order of the ranks."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    torch.distributed.all_gather_object(values, value)
    return values


def sample(results: Results, **kinds: Mapping[str, float]) -> None:
    """Samples of one cycle, over all ranks: `most` of what the slowest or fullest decides, `mean` of what each moves.

    Collective. Rank 0 keeps them.
    """
    everybody = gathered(kinds)
    for name in kinds.get("most", {}):
        results.sample(name, max(one["most"][name] for one in everybody))
    for name in kinds.get("mean", {}):
        results.sample(name, sum(one["mean"][name] for one in everybody) / len(everybody))
