"""The KV cache: one slot of full length for each sequence that is generated at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from baton.engines.model_config import ModelConfig
from baton.engines.small.layers import Storage
from baton.engines.small.shard import Shard
from baton.errors import BatonError


def bytes_per_slot(config: ModelConfig, shard: Shard, length: int, dtype: torch.dtype) -> int:
    """Bytes on each GPU that one sequence of `length` tokens needs."""
    return 2 * config.layers * shard.kv_heads * length * config.head_dim * dtype.itemsize


def slots_in(config: ModelConfig, shard: Shard, length: int, dtype: torch.dtype, wanted: int, limit: int | None) -> int:
    """How many slots there will be: `wanted`, or fewer when `limit` bytes do not hold them.

    Raises BatonError CACHE_TOO_SMALL when not even one fits.
    """
    each = bytes_per_slot(config, shard, length, dtype)
    slots = wanted if limit is None else min(wanted, limit // each)
    if slots < 1:
        raise BatonError(
            "CACHE_TOO_SMALL",
            f"The KV cache of {limit} bytes does not hold one sequence of {length} tokens.",
            expected=f"at least {each} bytes on each GPU",
            found=f"{limit} bytes",
            action="Give the engine more cache, or lower the longest prompt plus completion.",
        )
    return slots


class Cache:
    """Keys and values, each [layers, slots, kv heads, length, head dim], in memory given by `storage`."""

    def __init__(self, config: ModelConfig, shard: Shard, length: int, slots: int, storage: Storage) -> None:
        shape = (config.layers, slots, shard.kv_heads, length, config.head_dim)
        self.slots = slots
        self.length = length
        self.keys = storage(shape)
        self.values = storage(shape)
        self._defined: set[int] = set()

    @property
    def bytes(self) -> int:
        return 2 * math.prod(self.keys.shape) * self.keys.element_size()

    def forget(self) -> None:
        """To be called when the memory was mapped anew: what is in it is undefined."""
        self._defined.clear()

    def prepare(self, slots: Sequence[int]) -> None:
        """Makes every number in these slots finite. Attention masks what lies behind a sequence's end, but a
        masked NaN is still a NaN."""
        new = [slot for slot in slots if slot not in self._defined]
        if new:
            index = torch.tensor(new)
            self.keys[:, index] = 0
            self.values[:, index] = 0
            self._defined.update(new)
