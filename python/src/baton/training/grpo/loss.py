"""The loss of GRPO and of its variants, of one micro-batch, so that the average over micro-batches is that of all.

DeepSeekMath (arXiv 2402.03300, equations 3 and 4) has the clipped surrogate, the KL term and "grpo". DAPO (arXiv
2503.14476) has the two clip bounds and the mean over all tokens ("bnpo"), Dr. GRPO (arXiv 2503.20783) the constant
divisor ("dr_grpo"). The KL estimator k3 is Schulman's (http://joschu.net/blog/kl-approx.html); the truncated importance
weight is that of "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (Yao et al., 2025).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baton.errors import BatonError
from baton.training.grpo.figures import Figures
from baton.training.grpo.micro_batch import MicroBatch

LOSSES = ("grpo", "dr_grpo", "bnpo")


@dataclass(frozen=True)
class LossOptions:
    """`loss` says what the sum over tokens is divided by; see `policy_loss`. Raises BatonError BAD_LOSS_OPTIONS.

    `clip_low`, `clip_high`: how far below and above 1 a token's probability ratio counts. `beta`: weight of the KL
    term; 0: no reference is needed. `importance_cap`: bound of the truncated importance weight, None: no such weight.
    `max_completion_tokens` divides in "dr_grpo". `temperature`: of sampling, for `token_logprobs`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    loss: Literal["grpo", "dr_grpo", "bnpo"] = "grpo"
    importance_cap: float | None = None
    max_completion_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        # Each is written so that a NaN is wrong too.
        right = {
            "clip_low": 0 <= self.clip_low <= 1,
            "clip_high": self.clip_high >= 0,
            "beta": self.beta >= 0,
            "loss": self.loss in LOSSES,
            "importance_cap": self.importance_cap is None or self.importance_cap > 0,
            "max_completion_tokens": self.max_completion_tokens >= 1,
            "temperature": self.temperature > 0,
        }
        problems = [f"{name} {getattr(self, name)}" for name, good in right.items() if not good]
        if problems:
            raise BatonError(
                "BAD_LOSS_OPTIONS",
                "The options of the loss make no sense.",
                expected=f"0 <= clip_low <= 1, clip_high >= 0, beta >= 0, loss one of {', '.join(LOSSES)},"
                " importance_cap > 0 or None, max_completion_tokens >= 1, temperature > 0",
                found=", ".join(problems),
                action="Correct the options named.",
            )


@dataclass(frozen=True)
class Normaliser:
    """What one optimizer step covers, over all its ranks: counts of micro-batches, of rows and of trained tokens.

    For several ranks: all_reduce `tensor()` with SUM, then `from_tensor`.
    """

    micro_batches: int
    rows: int
    tokens: int

    @classmethod
    def of(cls, micros: Iterable[MicroBatch]) -> Normaliser:
        """Of one rank's micro-batches until its next optimizer step."""
        counts = [(1, len(micro.samples), int(micro.loss_mask.sum())) for micro in micros]
        return cls(*(sum(each) for each in zip(*counts, strict=True))) if counts else cls(0, 0, 0)

    def tensor(self) -> Tensor:
        return torch.tensor([self.micro_batches, self.rows, self.tokens], dtype=torch.int64)

    @classmethod
    def from_tensor(cls, counts: Tensor) -> Normaliser:
        return cls(*(int(count) for count in counts.tolist()))


def policy_loss(
    logprobs: Tensor, micro: MicroBatch, options: LossOptions, normaliser: Normaliser, entropy: Tensor | None = None
) -> tuple[Tensor, Figures]:
    """The loss (a scalar) of a micro-batch, from logprobs [rows, length - 1] with a gradient; and figures without.

    The average of these losses over all ranks and micro-batches of an optimizer step, as DeepSpeed makes it, is:

    - "grpo": the mean over samples of the mean over each one's tokens,
    - "dr_grpo": the sum over all tokens, divided by samples times `max_completion_tokens`,
    - "bnpo": the mean over all trained tokens.

    Samples are all rows: failed ones and those without tokens add 0, and count in the divisor; micro-batches may differ
    in rows. `entropy` [rows, length - 1] is for the figures only. Raises BatonError OLD_LOGPROBS_MISSING,
    REFERENCE_LOGPROBS_MISSING, LOGPROBS_SHAPE.
    """
    old, reference, counted = _old(micro), _reference(micro, options), micro.loss_mask
    if logprobs.shape != counted.shape:
        raise BatonError(
            "LOGPROBS_SHAPE",
            "The logprobs do not fit the micro-batch.",
            expected=f"[rows, length - 1] = {list(counted.shape)}",
            found=str(list(logprobs.shape)),
            action="Give the result of token_logprobs() for the ids of this micro-batch.",
        )
    # What is not counted becomes 0 before exp: a mask after it would not take out an infinity, nor its gradient.
    ratio = (logprobs - old).where(counted, 0).exp()
    advantages = micro.advantages[:, None]
    low, high = 1 - options.clip_low, 1 + options.clip_high
    gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    off = (old - micro.engine_logprobs).where(counted, 0)
    importance = off.exp()
    if options.importance_cap is not None:
        gain = gain * importance.clamp(max=options.importance_cap).detach()
    per_token = -gain
    values = {
        "clipped_low": (ratio < low) & (advantages < 0),
        "clipped_high": (ratio > high) & (advantages > 0),
        "ratio": ratio,
        "difference": off.abs(),
        "importance": importance,
        "k1": -off,
        # Never below 0 but by rounding, which near 0 would be most of exp(off) - 1.
        "k3": (torch.expm1(off) - off).clamp(min=0),
    }
    if reference is not None:
        away = (reference - logprobs).where(counted, 0)
        kl = torch.expm1(away) - away
        values |= {"kl": kl, "kl_tokens": counted}
        if options.beta:
            per_token = per_token + options.beta * kl
    if entropy is not None:
        values |= {"entropy": entropy, "entropy_tokens": counted}
    figures = Figures.of(counted, values, {"difference_max": off.abs(), "importance_max": importance})
    return _reduced(per_token.where(counted, 0), counted, options, normaliser), figures


def _reduced(per_token: Tensor, counted: Tensor, options: LossOptions, normaliser: Normaliser) -> Tensor:
    """Times the number of micro-batches, which the average divides by; so their rows and tokens may be uneven."""
    if options.loss == "grpo":
        total, divisor = (per_token.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).sum(), normaliser.rows
    elif options.loss == "dr_grpo":
        total, divisor = per_token.sum(), normaliser.rows * options.max_completion_tokens
    else:
        total, divisor = per_token.sum(), normaliser.tokens
    # Where all samples failed there are no tokens, and the sum is 0 as well.
    return total * (normaliser.micro_batches / max(1, divisor))


def _old(micro: MicroBatch) -> Tensor:
    if micro.old_logprobs is not None:
        return micro.old_logprobs
    raise BatonError(
        "OLD_LOGPROBS_MISSING",
        "The old logprobs of this micro-batch are not set.",
        expected="the trainer's logprobs at generation",
        found="none",
        action="Call GeneratedBatch.set_old_logprobs() before the first optimizer step; make micro-batches after that.",
    )


def _reference(micro: MicroBatch, options: LossOptions) -> Tensor | None:
    if micro.reference_logprobs is None and options.beta:
        raise BatonError(
            "REFERENCE_LOGPROBS_MISSING",
            "A KL term needs the reference model's logprobs, and they are not set.",
            expected=f"reference logprobs, as beta is {options.beta}",
            found="none",
            action="Call GeneratedBatch.set_reference_logprobs(), or set beta to 0.",
        )
    return micro.reference_logprobs
