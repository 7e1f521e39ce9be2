"""Compares the trainer's logprobs with the engine's, on tokens that the engine has just sampled.

This is what notices weights that arrived wrong in a way that no checksum sees: a name mapped to the wrong place, a
model that two implementations understand differently.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from baton.completion import Completion, U32s


@dataclass(frozen=True)
class Sampled:
    """A completion with the prompt and the temperature that it was sampled with."""

    prompt: U32s
    completion: Completion
    temperature: float


@dataclass(frozen=True)
class Difference:
    """Absolute differences of logprobs, over `tokens` tokens; None when there are none."""

    tokens: int
    largest: float | None
    mean: float | None


def compare(module: Any, sampled: Sequence[Sampled], *, collective: bool) -> Difference:
    """One forward pass over the sampled sequences, without a gradient and without a trace in the module.

    `collective`: the forward pass is one (ZeRO-3), so it is done even when there is nothing to compare.
    """
    chosen = [item for item in sampled if item.completion.tokens.size]
    if not chosen:
        if collective:
            _logits(module, [np.zeros(2, dtype=np.uint32)])
        return Difference(0, None, None)
    logits = _logits(module, [np.concatenate([item.prompt, item.completion.tokens]) for item in chosen])
    differences = np.concatenate([_differences(row, item) for row, item in zip(logits, chosen, strict=True)])
    # A NaN must not hide behind a comparison that is false.
    differences = np.where(np.isnan(differences), np.inf, differences)
    return Difference(int(differences.size), float(differences.max()), float(differences.mean()))


def _differences(logits: torch.Tensor, item: Sampled) -> npt.NDArray[np.float64]:
    start, count = item.prompt.size, item.completion.tokens.size
    # The logits at a position are for the token after it.
    rows = logits[start - 1 : start - 1 + count].float()
    # At temperature 0 an engine reports logprobs at temperature 1: the limit has no information.
    logprobs = torch.log_softmax(rows / (item.temperature or 1.0), dim=-1)
    tokens = torch.from_numpy(item.completion.tokens.astype(np.int64)).to(rows.device)
    ours = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return np.abs(ours.double().cpu().numpy() - item.completion.logprobs.astype(np.float64))


def _logits(module: Any, sequences: list[U32s]) -> torch.Tensor:
    """Logits [sequences, longest, vocabulary]; shorter sequences are padded on the right."""
    longest = max(sequence.size for sequence in sequences)
    ids = torch.zeros((len(sequences), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : sequence.size] = torch.from_numpy(sequence.astype(np.int64))
        mask[row, : sequence.size] = 1
    device = next(iter(module.parameters())).device
    with _quiet(module), torch.no_grad():
        output = module(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return output.logits if hasattr(output, "logits") else output[0]


@contextmanager
def _quiet(module: Any) -> Generator[None]:
    """Evaluation mode, and afterwards every submodule in the mode it was in, and the random states as they were."""
    modes = [(part, part.training) for part in module.modules()]
    random_state = torch.random.get_rng_state()
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        torch.random.set_rng_state(random_state)
