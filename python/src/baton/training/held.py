"""What a rank holds of a parameter: all of it, or its partition under ZeRO-3."""

from __future__ import annotations

from typing import Any

import torch


def held(parameter: Any) -> torch.Tensor:
    """The memory that this rank keeps of a parameter: its partition (flat) under ZeRO-3, else the whole tensor."""
    partition = getattr(parameter, "ds_tensor", None)
    return parameter.data if partition is None else partition


def span(parameter: Any) -> tuple[int, int]:
    """(first element, number of elements) of a parameter that this rank holds; none of it: a number of 0."""
    partition = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return 0, int(parameter.numel())
    share = int(partition.ds_numel)
    first = torch.distributed.get_rank(parameter.ds_process_group) * share
    return first, max(0, min(share, int(parameter.ds_numel) - first))
