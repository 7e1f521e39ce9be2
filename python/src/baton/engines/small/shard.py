"""How a model is split over the small engine's workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baton.engines.model_config import ModelConfig
from baton.errors import BatonError

#: The vocabulary is padded to a multiple of this (and of the tensor-parallel size), as vLLM does.
VOCABULARY_MULTIPLE = 64


@dataclass(frozen=True)
class Shard:
    """What one tensor-parallel rank holds of a model."""

    rank: int
    size: int
    heads: int
    kv_heads: int
    #: How many neighbouring ranks hold the same KV heads.
    kv_replicas: int
    intermediate_size: int
    #: Rows of the embedding on every rank, padding included.
    vocabulary_rows: int

    @classmethod
    def of(cls, config: ModelConfig, rank: int, size: int) -> Shard:
        """Raises BatonError TENSOR_PARALLEL_MISFIT when `size` does not divide the model."""
        for what, count in (("attention heads", config.heads), ("intermediate size", config.intermediate_size)):
            if count % size:
                raise _misfit(f"{count} {what}", size)
        if config.kv_heads % size and size % config.kv_heads:
            raise _misfit(f"{config.kv_heads} key-value heads", size)
        multiple = math.lcm(VOCABULARY_MULTIPLE, size)
        padded = -(-config.vocabulary_size // multiple) * multiple
        return cls(
            rank=rank,
            size=size,
            heads=config.heads // size,
            kv_heads=max(1, config.kv_heads // size),
            kv_replicas=max(1, size // config.kv_heads),
            intermediate_size=config.intermediate_size // size,
            vocabulary_rows=padded // size,
        )


def _misfit(what: str, size: int) -> BatonError:
    return BatonError(
        "TENSOR_PARALLEL_MISFIT",
        f"The model cannot be split over {size} tensor-parallel workers.",
        expected=f"a number of workers that divides {what}",
        found=f"{what} over {size} workers",
        action="Choose another tensor-parallel size.",
    )
