"""Choosing tokens. What a sample draws depends on (seed, stream, sample, position) and nothing else.

Every worker computes the same choice from the same gathered logits, so no choice has to be sent.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.errors import BatonError

U64s = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(value: U64s) -> U64s:
    """splitmix64's finaliser: every bit of the input changes half of the output."""
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))


def stream_keys(seed: int, streams: npt.ArrayLike, samples: npt.ArrayLike) -> U64s:
    """One key for each (seed, stream, sample)."""
    with np.errstate(over="ignore"):
        key = _mix(np.asarray(seed & 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64) + _GOLDEN)
        key = _mix(key ^ _mix(np.asarray(streams, dtype=np.uint64) + _GOLDEN))
        return _mix(key + _mix(np.asarray(samples, dtype=np.uint64) * _GOLDEN + _FIRST))


def uniforms(keys: U64s, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each key at its position (tokens generated before)."""
    with np.errstate(over="ignore"):
        drawn = _mix(keys + (np.asarray(positions, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Drawing(Protocol):
    """How tokens are drawn: as in baton.completion.Sampling."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


def choose(logits: Tensor, how: Drawing, numbers: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Tokens (int64) and their logprobs (float32), one for each row of `logits` [rows, vocabulary] (float32).

    The logprob is that of the distribution at the temperature, before min-p, top-k and top-p cut it (in this order,
    which is vLLM's). At temperature 0 the largest logit wins, and the logprob is that at temperature 1: the limit
    itself has no information.
    """
    if how.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _picked(_finite(torch.log_softmax(logits, -1)), tokens)
    logprobs = _finite(torch.log_softmax(logits / how.temperature, -1))
    # float64: the sum over a large vocabulary must not lose the small probabilities.
    weights = logprobs.double().exp()
    if how.min_p > 0:
        weights = weights.masked_fill(weights < how.min_p * weights.amax(-1, keepdim=True), 0.0)
    order = None
    if how.top_p < 1 or how.top_k > 0:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
    if how.top_k > 0:
        weights[:, how.top_k :] = 0.0
    if how.top_p < 1:
        before = weights.cumsum(-1) - weights
        # The most likely token always stays.
        weights = weights.masked_fill(before >= how.top_p * weights.sum(-1, keepdim=True), 0.0)
    sums = weights.cumsum(-1)
    points = torch.from_numpy(numbers).to(sums.device).unsqueeze(-1) * sums[:, -1:]
    # right=True: the first index whose sum is greater than the point, so a weight of 0 is never chosen. There is one:
    # a number is at most 1 - 2^-53, and that times any float64 rounds to less than it.
    picks = torch.searchsorted(sums, points, right=True)
    tokens = (picks if order is None else order.gather(-1, picks)).squeeze(-1)
    return tokens, _picked(logprobs, tokens)


def _finite(logprobs: Tensor) -> Tensor:
    """Raises BatonError LOGITS_NOT_FINITE. One NaN in a row makes the whole row NaN, so one column tells."""
    if torch.isnan(logprobs[:, 0]).any():
        raise BatonError(
            "LOGITS_NOT_FINITE",
            "The model's output is not a distribution.",
            expected="finite logits",
            found="NaN or infinity",
            action="Look at the trainer: its weights have probably become NaN.",
        )
    return logprobs


def _picked(logprobs: Tensor, tokens: Tensor) -> Tensor:
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
