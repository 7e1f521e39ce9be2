"""Finds what lies in the pool without being training state, and moves it out.

While the pool is open everything that torch allocates lands in it: also a script's prompts, random states, lookup
tables. A script may use those during generation, when the pool's memory is gone. Tensors that Python knows are
moved to ordinary memory; a block that nobody in Python knows keeps its segment mapped.
"""

from __future__ import annotations

import gc
from collections.abc import Container
from typing import Any

import numpy as np
import torch

from baton import native


def unknown_blocks(blocks: native.Array, known: list[tuple[int, int]]) -> native.Array:
    """Those of `blocks` (native.RANGE, in address order) that contain none of the `known` addresses."""
    if blocks.size == 0:
        return blocks
    addresses = np.array(sorted(address for address, _ in known), dtype=np.uint64)
    # A block is known when the first known address at or after its start lies before its end.
    position = np.searchsorted(addresses, blocks["address"])
    padded = np.append(addresses, np.uint64(native.UNKNOWN))
    return blocks[padded[position] >= blocks["address"] + blocks["bytes"]]


def storages_in(blocks: native.Array, known: Container[int], device_type: str) -> list[torch.UntypedStorage]:
    """The storages of Python's tensors on `device_type` that lie in `blocks` and whose keys are not in `known`."""
    if blocks.size == 0:
        return []
    starts = blocks["address"]
    found: dict[int, torch.UntypedStorage] = {}
    for candidate in _tensors(device_type):
        storage = candidate.untyped_storage()
        if storage._cdata in known or storage._cdata in found or storage.nbytes() == 0:
            continue
        address = storage.data_ptr()
        position = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
        if position >= 0 and address < int(starts[position]) + int(blocks["bytes"][position]):
            found[storage._cdata] = storage
    return list(found.values())


def tensors_of(keys: Container[int], device_type: str) -> dict[int, list[torch.Tensor]]:
    """All tensors of Python on `device_type` whose storage is one of `keys`, by that. Looks at every object once."""
    found: dict[int, list[torch.Tensor]] = {}
    for candidate in _tensors(device_type):
        key = candidate.untyped_storage()._cdata
        if key in keys:
            found.setdefault(key, []).append(candidate)
    return found


def _tensors(device_type: str) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for candidate in gc.get_objects():
        kind: Any = type(candidate)  # isinstance would ask proxies for their class, and run their code
        if not issubclass(kind, torch.Tensor):
            continue
        if candidate.device.type == device_type and candidate.layout is torch.strided and _has_storage(candidate):
            found.append(candidate)
    return found


def _has_storage(tensor: torch.Tensor) -> bool:
    try:
        tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # fake, functional and other wrapper tensors
        return False
    return True
