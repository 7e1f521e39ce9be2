"""GRPO read slowly from the papers: each sample alone, token by token, no masks and no padding.

Nothing here uses the code under test. The formulas: DeepSeekMath (arXiv 2402.03300) equations 3 and 4 for "grpo", Dr.
GRPO (arXiv 2503.20783) for "dr_grpo", DAPO (arXiv 2503.14476) equation 8 for "bnpo".
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Sample:
    prompt: list[int]
    tokens: list[int]
    engine: list[float]
    reward: float  # NaN: failed
    advantage: float = 0.0
    old: list[float] | None = None
    reference: list[float] | None = None


def group_advantages(rewards: list[float]) -> list[float]:
    valid = [reward for reward in rewards if not math.isnan(reward)]
    if len(valid) < 2:
        return [0.0] * len(rewards)
    mean, std = statistics.fmean(valid), statistics.stdev(valid)
    return [0.0 if math.isnan(reward) else (reward - mean) / (std + 1e-4) for reward in rewards]


def logprobs_of(model: Any, sample: Sample, temperature: float) -> list[torch.Tensor]:
    """log pi(o_t | q, o_<t) for each token of the completion."""
    sequence = sample.prompt + sample.tokens
    logits = model(input_ids=torch.tensor([sequence])).logits[0]
    found = []
    for t, token in enumerate(sample.tokens):
        before = logits[len(sample.prompt) + t - 1] / temperature
        found.append(before[token] - torch.log(torch.exp(before).sum()))
    return found


@dataclass
class Outcome:
    loss: torch.Tensor
    clipped_low: int
    clipped_high: int
    kl: float  # mean over tokens, if there is a reference
    ratio: float
    tokens: int


def naive_loss(
    model: Any,
    samples: list[Sample],
    variant: str,
    *,
    clip_low: float,
    clip_high: float,
    beta: float,
    cap: float | None,
    longest: int,
    temperature: float,
) -> Outcome:
    """The loss of the whole batch, of all ranks and micro-batches."""
    low = high = tokens = 0
    kl_sum = ratio_sum = 0.0
    sample_sums: list[torch.Tensor] = []
    sample_means: list[torch.Tensor] = []
    for sample in samples:
        if math.isnan(sample.reward) or not sample.tokens:
            continue
        losses = []
        assert sample.old is not None
        for t, new in enumerate(logprobs_of(model, sample, temperature)):
            ratio = torch.exp(new - sample.old[t])
            # The smaller of ratio * advantage and bounded ratio * advantage: the bounded one is smaller, and constant,
            # where the ratio has gone too far in the direction that the advantage rewards.
            too_low = sample.advantage < 0 and ratio.item() < 1 - clip_low
            too_high = sample.advantage > 0 and ratio.item() > 1 + clip_high
            bounded = torch.tensor(1 - clip_low if too_low else 1 + clip_high)
            gain = (bounded if too_low or too_high else ratio) * sample.advantage
            low, high = low + too_low, high + too_high
            if cap is not None:
                gain = gain * min(math.exp(sample.old[t] - sample.engine[t]), cap)
            loss = -gain
            if beta:
                assert sample.reference is not None
                quotient = torch.exp(sample.reference[t] - new)
                kl = quotient - torch.log(quotient) - 1
                loss = loss + beta * kl
                kl_sum += kl.item()
            ratio_sum += ratio.item()
            tokens += 1
            losses.append(loss)
        sample_sums.append(torch.stack(losses).sum())
        sample_means.append(torch.stack(losses).sum() / len(losses))
    if variant == "grpo":
        total = torch.stack(sample_means).sum() / len(samples)
    elif variant == "dr_grpo":
        total = torch.stack(sample_sums).sum() / (len(samples) * longest)
    else:
        total = torch.stack(sample_sums).sum() / tokens
    return Outcome(total, low, high, kl_sum / tokens, ratio_sum / tokens, tokens)
