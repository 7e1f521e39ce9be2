"""Rows for one forward pass: some samples of a generated batch, padded to the longest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Samples padded on the right. Position t predicts token t + 1, so what is for each token is one shorter.

    Padding counts nowhere: it is False in both masks, and 0 elsewhere.
    """

    samples: tuple[int, ...]  # positions of the rows' samples in the generated batch
    ids: Tensor  # [rows, length], int64
    attention_mask: Tensor  # [rows, length], int64: 1 for tokens, 0 for padding
    completion_mask: Tensor  # [rows, length - 1], bool: whether the predicted token was sampled
    trained: Tensor  # [rows], bool: False for failed samples
    advantages: Tensor  # [rows], float32
    engine_logprobs: Tensor  # [rows, length - 1], float32
    old_logprobs: Tensor | None  # [rows, length - 1], float32; None before they are set
    reference_logprobs: Tensor | None  # [rows, length - 1], float32; None without a reference

    @property
    def loss_mask(self) -> Tensor:
        """[rows, length - 1], bool: the tokens that the loss and the figures count."""
        return self.completion_mask & self.trained[:, None]

    def to(self, device: torch.device | str) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return MicroBatch(**moved)


@dataclass(frozen=True)
class Row:
    """One sample, before padding."""

    sample: int
    prompt: Tensor  # [prompt tokens], int64
    completion: Tensor  # [completion tokens], int64
    trained: Tensor  # []
    advantage: Tensor  # []
    engine: Tensor  # [completion tokens]
    old: Tensor | None
    reference: Tensor | None


def padded(rows: Sequence[Row]) -> MicroBatch:
    """The rows in their order, at least one."""
    # Two at least: one token alone predicts nothing, and no tensor should be empty.
    length = max(2, *(len(row.prompt) + len(row.completion) for row in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    attention_mask = torch.zeros_like(ids)
    completion_mask = torch.zeros(len(rows), length - 1, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens = torch.cat([row.prompt, row.completion])
        ids[index, : len(tokens)] = tokens
        attention_mask[index, : len(tokens)] = 1
        completion_mask[index, len(row.prompt) - 1 : len(tokens) - 1] = True

    def spread(pieces: Sequence[Tensor | None]) -> Tensor | None:
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(rows):
            return None
        # Both go row by row, and by position within a row.
        return torch.zeros(len(rows), length - 1).masked_scatter_(completion_mask, torch.cat(known).float())

    engine = spread([row.engine for row in rows])
    assert engine is not None
    return MicroBatch(
        samples=tuple(row.sample for row in rows),
        ids=ids,
        attention_mask=attention_mask,
        completion_mask=completion_mask,
        trained=torch.stack([row.trained for row in rows]),
        advantages=torch.stack([row.advantage for row in rows]).float(),
        engine_logprobs=engine,
        old_logprobs=spread([row.old for row in rows]),
        reference_logprobs=spread([row.reference for row in rows]),
    )
