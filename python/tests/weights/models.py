"""The small engine's model without its processes, and models whose load_weights are awkward."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from baton.engines import model_config as configuration
from baton.engines.model_config import ModelConfig
from baton.engines.small.model import CausalModel
from baton.engines.small.shard import Shard


def tiny_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "model_type": "qwen2",
        "vocab_size": 100,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "tie_word_embeddings": True,
    }
    return configuration.parse(values | changes)


def trainer_tensors(config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in config.checkpoint_tensors()}


def part_of(config: ModelConfig, rank: int, size: int, dtype: torch.dtype) -> CausalModel:
    """Rank `rank`'s part, every parameter NaN. It can load weights; it cannot compute."""
    group: Any = SimpleNamespace(rank=rank, size=size)
    return CausalModel(
        config, Shard.of(config, rank, size), lambda shape: torch.full(shape, torch.nan, dtype=dtype), group, dtype, 16
    )


class Awkward(nn.Module):
    """One parameter, loaded by a function of the test."""

    def __init__(self, load: Any, shape: tuple[int, ...] = (6, 8), dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, torch.nan, dtype=dtype), requires_grad=False)
        self._load = load

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for _, tensor in weights:
            self._load(self.weight.data, tensor)
