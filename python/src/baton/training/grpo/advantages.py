"""Advantages: by how much a sample's reward is better than those of the other samples of its prompt.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2) divides by the standard deviation of the group. Dr. GRPO (arXiv
2503.20783) does not divide, because that weights problems by how unequal their samples happen to be. Dividing by the
standard deviation of the whole batch (REINFORCE++, arXiv 2501.03262; Liu et al., arXiv 2508.08221) is between the two.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from baton.errors import BatonError

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4  # as TRL has it: a group that hardly differs is not blown up into a large advantage


def advantages(rewards: Tensor, scale: Scale, batch_std: float | None = None) -> Tensor:
    """Advantages [prompts, generations] of rewards [prompts, generations], in their dtype; always finite.

    A reward that is not finite (NaN) is a failed sample: it counts in no mean and no standard deviation, and its
    advantage is 0. Fewer than two others in a group have nothing to compare: all 0. `batch_std` is needed for
    scale "batch" only: `std_of(reward_sums(rewards))`, the sums added up over all ranks.

    Raises BatonError BAD_ADVANTAGE_SCALE.
    """
    # In double precision equal float32 rewards have exactly their own value as mean, and advantage 0.
    values, valid = rewards.double(), rewards.isfinite()
    count = valid.sum(dim=1, keepdim=True)
    mean = values.where(valid, 0).sum(dim=1, keepdim=True) / count.clamp(min=1)
    # One sample alone is exactly its group's mean, so it has advantage 0 as it should.
    centred = (values - mean).where(valid, 0)
    if scale == "group":
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        scaled = centred / (variance.sqrt() + EPSILON)
    elif scale == "batch" and batch_std is not None and math.isfinite(batch_std):
        scaled = centred / (batch_std + EPSILON)
    elif scale == "none":
        scaled = centred
    else:
        raise BatonError(
            "BAD_ADVANTAGE_SCALE",
            "The advantages cannot be scaled like this.",
            expected='scale "group", "none", or "batch" with the standard deviation of the batch',
            found=f"scale {scale!r}, batch_std {batch_std}",
            action="Correct the scale; for the standard deviation of a batch see std_of().",
        )
    return scaled.to(rewards.dtype)


def reward_sums(rewards: Tensor) -> Tensor:
    """Float64 [3] on the rewards' device: count, sum and sum of squares of those that did not fail. Sums may be added
    (all_reduce) over ranks.
    """
    valid = rewards.isfinite()
    values = rewards.double().where(valid, 0)
    return torch.stack([valid.sum().double(), values.sum(), values.square().sum()])


def std_of(sums: Tensor) -> float:
    """Standard deviation (with n - 1) from `reward_sums`; 0 for fewer than two samples."""
    count, total, squares = sums.tolist()
    if count < 2:
        return 0.0
    # Rounding can make the difference of two nearly equal numbers negative.
    return math.sqrt(max(0.0, squares - total * total / count) / (count - 1))
