"""Moves training state into the pool, and what is not training state out of it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from baton import native
from baton.errors import BatonError
from baton.training.holdings import Holding, Holdings
from baton.training.strays import storages_in, tensors_of, unknown_blocks

if TYPE_CHECKING:
    from baton.training.backends import Backend


def outside(holdings: Holdings, pool: native.Pool) -> list[Holding]:
    """The training state that is not in the pool."""
    return [holding for holding in holdings if not pool.owns(holding.address)]


def move_in(holdings: Iterable[Holding], backend: Backend) -> int:
    """Moves these storages to where torch allocates now; returns the bytes. The pool must be open.

    Raises BatonError CANNOT_MOVE_IN that names the tensors that cannot be moved; then nothing was moved.
    """
    moving = list(holdings)
    problems = [*_shared(moving, backend), *_overlapping(moving)]
    if problems:
        raise BatonError(
            "CANNOT_MOVE_IN",
            "Training state lies outside of the training memory and cannot be moved into it.",
            expected="tensors made inside training_memory(), or ordinary tensors",
            found="; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""),
            action="Build the model inside `with baton.training_memory():`, or clone these tensors before.",
        )
    fixed = {holding.storage._cdata for holding in moving if not holding.storage.resizable()}
    users = tensors_of(fixed, backend.device_type) if fixed else {}
    for holding in moving:
        key = holding.storage._cdata
        if key in fixed:
            _replace(holding, users.get(key, []))
        else:
            backend.rehome(holding.storage)
    return sum(holding.bytes for holding in moving)


def _shared(moving: list[Holding], backend: Backend) -> list[str]:
    """Storages on another device, or mapped by other processes too: moving would end the sharing in silence."""
    problems: list[str] = []
    for holding in moving:
        if holding.storage.device.type != backend.device_type:
            problems.append(f"{_name(holding)} is on {holding.storage.device}")
        elif backend.shared(holding.storage):
            problems.append(f"{_name(holding)} is shared with other processes")
    return problems


def _overlapping(moving: list[Holding]) -> list[str]:
    """Different storages over the same bytes would part when they are moved."""
    ordered = sorted(moving, key=lambda holding: holding.address)
    return [
        f"{_name(left)} and {_name(right)} overlap in memory without sharing a storage"
        for left, right in pairwise(ordered)
        if left.address + left.bytes > right.address
    ]


def _replace(holding: Holding, users: Iterable[torch.Tensor]) -> None:
    """Gives `users`, the tensors of a storage whose memory is not torch's own (a mapped file, numpy), a new storage.

    The old memory stays as it is for whoever else looks at it.
    """
    old = holding.storage
    new = torch.empty(old.nbytes(), dtype=torch.uint8, device=old.device).untyped_storage()
    new.copy_(old)
    for tensor in users:
        view = torch.empty(0, dtype=tensor.dtype, device=old.device)
        view.set_(new, tensor.storage_offset(), tensor.size(), tensor.stride())
        tensor.data = view
    holding.storage = new


def move_out(pool: native.Pool, holdings: Holdings, backend: Backend) -> tuple[list[tuple[int, int]], bool]:
    """Moves what is not training state out of the pool, which must be closed.

    Returns (address, bytes) of the blocks that stay, because nobody in Python knows them or somebody outside of torch
    may look at them: their segments must stay mapped. And whether there was anything to move.
    """
    known = [holding.range for holding in holdings]
    unknown = unknown_blocks(backend.blocks(pool), known)
    if unknown.size == 0:
        return [], False
    keys = {holding.key for holding in holdings}
    for storage in storages_in(unknown, keys, backend.device_type):
        # Memory that numpy or another library may look at is marked by torch as not resizable.
        if storage.resizable() and not backend.shared(storage):
            backend.rehome(storage)
    left = unknown_blocks(backend.blocks(pool), known)
    return [(int(block["address"]), int(block["bytes"])) for block in left], True


def _name(holding: Holding) -> str:
    more = len(holding.names) - 1
    return f"{holding.names[0]}" + (f" (and {more} more)" if more else "")
