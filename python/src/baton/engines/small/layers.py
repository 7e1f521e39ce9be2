"""Tensor-parallel layers, named and fused as vLLM's, each with the loader of its own parameters.

A loader gets the trainer's whole tensor and copies this worker's slices into place. Parameters live in memory that
is given from outside (`Storage`), because the pool that holds them is unmapped while the engine sleeps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from baton.engines.small.group import Group
from baton.engines.small.shard import Shard

#: Gives uninitialised memory for a parameter of this shape.
Storage = Callable[[tuple[int, ...]], Tensor]


def parameter(storage: Storage, *shape: int) -> nn.Parameter:
    return nn.Parameter(storage(shape), requires_grad=False)


class FusedColumns(nn.Module):
    """Several column-parallel linear layers over the same input in one matrix, one below the other."""

    def __init__(self, storage: Storage, inputs: int, outputs: tuple[int, ...], bias: bool) -> None:
        """`outputs`: rows on this worker of each part."""
        super().__init__()
        self.outputs = outputs
        self.weight = parameter(storage, sum(outputs), inputs)
        self.bias = parameter(storage, sum(outputs)) if bias else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return nn.functional.linear(hidden, self.weight, self.bias).split(self.outputs, dim=-1)

    def load(self, target: nn.Parameter, source: Tensor, part: int, index: int) -> None:
        """Copies slice `index` of `source` (in units of this part's rows) into `part`."""
        rows = self.outputs[part]
        target.data.narrow(0, sum(self.outputs[:part]), rows).copy_(source.narrow(0, index * rows, rows))


class RowParallel(nn.Module):
    """A linear layer split along its input; the workers' products are added in float32 and rounded once."""

    def __init__(self, storage: Storage, inputs: int, outputs: int, bias: bool, group: Group) -> None:
        """`inputs`: columns on this worker."""
        super().__init__()
        self.group = group
        self.weight = parameter(storage, outputs, inputs)
        self.bias = parameter(storage, outputs) if bias else None

    def forward(self, part: Tensor) -> Tensor:
        if self.group.size == 1:
            return nn.functional.linear(part, self.weight, self.bias)
        total = self.group.sum(nn.functional.linear(part.float(), self.weight.float()))
        if self.bias is not None:
            total += self.bias.float()
        return total.to(part.dtype)

    def load(self, target: nn.Parameter, source: Tensor) -> None:
        if target is self.bias:
            target.data.copy_(source)
        else:
            columns = target.shape[1]
            target.data.copy_(source.narrow(1, self.group.rank * columns, columns))


class VocabularyParallel(nn.Module):
    """Embedding rows split over the workers, padded with zero rows at the end. Also the output head."""

    def __init__(self, storage: Storage, shard: Shard, vocabulary_size: int, hidden: int, group: Group) -> None:
        super().__init__()
        self.group = group
        self.vocabulary_size = vocabulary_size
        self.start = shard.rank * shard.vocabulary_rows
        self.weight = parameter(storage, shard.vocabulary_rows, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.group.size == 1:
            return nn.functional.embedding(tokens, self.weight)
        local = tokens - self.start
        mine = (local >= 0) & (local < self.weight.shape[0])
        rows = nn.functional.embedding(local * mine, self.weight).float() * mine.unsqueeze(-1)
        return self.group.sum(rows).to(self.weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, vocabulary_size] in float32, the same on every worker."""
        return self.group.concatenate(nn.functional.linear(hidden, self.weight)).float()[:, : self.vocabulary_size]

    def load(self, target: nn.Parameter, source: Tensor) -> None:
        rows = max(0, min(target.shape[0], self.vocabulary_size - self.start))
        if rows:
            target.data[:rows].copy_(source.narrow(0, self.start, rows))
        target.data[rows:].fill_(0)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32, as Hugging Face's models do it."""

    def __init__(self, storage: Storage, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = parameter(storage, size)
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(hidden.dtype)

    def load(self, target: nn.Parameter, source: Tensor) -> None:
        target.data.copy_(source)
