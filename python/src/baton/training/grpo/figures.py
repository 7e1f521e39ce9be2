"""Figures of training, as sums and counts: those of micro-batches and of ranks add up to those of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# In the order of the tensors that ranks exchange.
SUMS = (
    "tokens",
    "clipped_low",
    "clipped_high",
    "ratio",
    "difference",
    "importance",
    "k1",
    "k3",
    "kl",
    "kl_tokens",
    "entropy",
    "entropy_tokens",
)
MAXIMA = ("difference_max", "importance_max")


@dataclass(frozen=True)
class Figures:
    """Of the tokens that the loss counts: [len(SUMS)] sums and [len(MAXIMA)] maxima, float64.

    On the device of the loss, so that nothing waits for the GPU before `report`. The maxima are of values that are
    never negative, so they begin at 0.
    """

    sums: Tensor
    maxima: Tensor

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> Figures:
        sums, maxima = (torch.zeros(len(names), dtype=torch.float64, device=device) for names in (SUMS, MAXIMA))
        return cls(sums, maxima)

    @classmethod
    def of(cls, mask: Tensor, values: Mapping[str, Tensor], maxima: Mapping[str, Tensor]) -> Figures:
        """From tensors [rows, length - 1] by name, where `mask` is True; what is not named stays unknown."""
        device = mask.device
        named = {"tokens": torch.ones_like(mask), **values}
        # Not a product with the mask: 0 times NaN, at padding, is NaN.
        sums = [named[name].detach().double().where(mask, 0).sum() if name in named else None for name in SUMS]
        largest = [maxima[name].detach().double().where(mask, 0).amax() if name in maxima else None for name in MAXIMA]
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(*(torch.stack([zero if each is None else each for each in found]) for found in (sums, largest)))

    def add(self, other: Figures) -> Figures:
        """The figures of both together."""
        return Figures(self.sums + other.sums, torch.maximum(self.maxima, other.maxima))

    def tensor(self) -> tuple[Tensor, Tensor]:
        """For all_reduce with SUM, and with MAX."""
        return self.sums.clone(), self.maxima.clone()

    @classmethod
    def from_tensor(cls, sums: Tensor, maxima: Tensor) -> Figures:
        return cls(sums, maxima)

    def report(self) -> dict[str, float | None]:
        """Means over tokens, by name; None for what is unknown: not measured, or of no tokens.

        - `clipFraction`, `clipFractionLow`, `clipFractionHigh`: share of tokens whose gradient the clipping took away.
        - `ratioMean`: probability of a token now over that at generation (1 in the first iteration).
        - `kl`: k3 estimate of the divergence from the reference, in nats a token. `entropy`: nats a token.
        - `logprobDifferenceMean`, `-Max`: of trainer and engine at generation, absolute; `importanceRatioMean`, `-Max`:
          exp of the trainer's logprob minus the engine's; `engineKl1`, `engineKl3`: estimates of the divergence of the
          trainer from the engine (k1, the mean difference, can be negative; k3 never is).
        """
        sums: dict[str, float] = dict(zip(SUMS, self.sums.tolist(), strict=True))
        largest: dict[str, float] = dict(zip(MAXIMA, self.maxima.tolist(), strict=True))
        tokens = sums["tokens"]

        def mean(name: str, count: float = tokens) -> float | None:
            return sums[name] / count if count else None

        clipped = (sums["clipped_low"] + sums["clipped_high"]) / tokens if tokens else None
        report = {
            "tokens": tokens,
            "clipFraction": clipped,
            "clipFractionLow": mean("clipped_low"),
            "clipFractionHigh": mean("clipped_high"),
            "ratioMean": mean("ratio"),
            "kl": mean("kl", sums["kl_tokens"]),
            "entropy": mean("entropy", sums["entropy_tokens"]),
            "logprobDifferenceMean": mean("difference"),
            "logprobDifferenceMax": largest["difference_max"] if tokens else None,
            "importanceRatioMean": mean("importance"),
            "importanceRatioMax": largest["importance_max"] if tokens else None,
            "engineKl1": mean("k1"),
            "engineKl3": mean("k3"),
        }
        # A NaN passes every comparison as false, in a maximum over ranks too; an infinity is seen.
        return {k: math.inf if v is not None and math.isnan(v) else v for k, v in report.items()}
