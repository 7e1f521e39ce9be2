"""A whole training by GRPO read slowly: one process, torch's AdamW, all ranks' samples, one token at a time.

Nothing here uses the code under test. An adapter is a product of two matrices that is added to a weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from naive_grpo import Outcome, Sample, logprobs_of, naive_loss
from transformers import AutoModelForCausalLM

Tensors = dict[str, torch.Tensor]
_FACTOR = re.compile(r"base_model\.model\.(.*)\.lora_A\.default\.weight")


class Weights:
    """A model whose trained tensors are given by their names in the policy."""

    def __init__(self, folder: Path | str, initial: Tensors, scale: float | None) -> None:
        """`scale`: of the adapter; None: all of `initial` is trained, and there is none."""
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).requires_grad_(False)
        self._scale = scale
        self.trained: Tensors = {
            name: value.clone().requires_grad_() for name, value in initial.items() if scale is None or "lora_" in name
        }

    def _effective(self) -> Tensors:
        if self._scale is None:
            return dict(self.trained)
        base, found = dict(self._model.named_parameters()), {}
        for name, first in self.trained.items():
            match = _FACTOR.fullmatch(name)
            if match is not None:
                second = self.trained[name.replace("lora_A", "lora_B")]
                weight = f"{match[1]}.weight"
                found[weight] = base[weight] + self._scale * second @ first
        assert len(found) == len(self.trained) / 2
        return found

    def __call__(self, **inputs: Any) -> Any:
        return torch.func.functional_call(self._model, self._effective(), kwargs=inputs)

    def untrained(self) -> Any:
        return self._model


@dataclass
class NaiveStep:
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    clipped_low: int
    clipped_high: int
    ratio: float
    kl: float
    parameters: Tensors


def train(case: Any, options: Any, weights: Weights, batches: list[list[Sample]], ranks: int) -> list[NaiveStep]:
    """`case` for the shape, `options` for the numbers."""
    trained = weights.trained
    optimizer = torch.optim.AdamW(
        list(trained.values()), lr=0.0, betas=options.betas, weight_decay=options.weight_decay
    )
    steps = []
    for number in range(case.steps):
        parts: dict[int, list[int]] = {}
        for used in range(number * case.accumulation, (number + 1) * case.accumulation):
            parts.setdefault(used // case.passes, []).append(used % case.micros)
        optimizer.zero_grad()
        loss, outcomes = torch.zeros(()), []
        for batch, micros in parts.items():
            _remember(weights, batches[batch], options)
            share = len(batches[batch]) // ranks
            covered = [
                sample
                for micro in micros
                for rank in range(ranks)
                for sample in batches[batch][rank * share :][micro * case.micro_batch : (micro + 1) * case.micro_batch]
            ]
            outcome = _loss(weights, covered, options)
            loss = loss + outcome.loss * (len(micros) / case.accumulation)
            outcomes.append(outcome)
        loss.backward()
        # No gradient at all is none of 0, where DeepSpeed has it.
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), options.max_grad_norm)
        rate = options.learning_rate * min(1.0, (number + 1) / (options.warmup_steps + 1))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        tokens = sum(each.tokens for each in outcomes)
        steps.append(
            NaiveStep(
                loss=loss.item(),
                gradient_norm=norm.item(),
                learning_rate=rate,
                tokens=tokens,
                clipped_low=sum(each.clipped_low for each in outcomes),
                clipped_high=sum(each.clipped_high for each in outcomes),
                ratio=sum(each.ratio * each.tokens for each in outcomes) / tokens,
                kl=sum(each.kl * each.tokens for each in outcomes) / tokens,
                parameters={name: value.detach().clone() for name, value in trained.items()},
            )
        )
    return steps


def _remember(weights: Weights, samples: list[Sample], options: Any) -> None:
    """The logprobs at generation and of the reference, the first time that a batch is used."""
    for sample in samples:
        if sample.old is None:
            with torch.no_grad():
                sample.old = [each.item() for each in logprobs_of(weights, sample, options.temperature)]
                sample.reference = [
                    each.item() for each in logprobs_of(weights.untrained(), sample, options.temperature)
                ]


def _loss(weights: Weights, samples: list[Sample], options: Any) -> Outcome:
    return naive_loss(
        weights,
        samples,
        options.loss,
        clip_low=options.clip,
        clip_high=options.clip if options.clip_high is None else options.clip_high,
        beta=options.beta,
        cap=options.importance_cap,
        longest=options.max_completion_tokens,
        temperature=options.temperature,
    )
