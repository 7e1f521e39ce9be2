"""What never changes and is the same on all ranks of a node is kept in host memory once, not once a rank.

Under ZeRO-1 and ZeRO-2 that is a reference model, and the base of a policy with adapters: at 7B and eight ranks 15 GB
instead of 120. Which storages are alike is found out by checksum, so it does not matter what the ZeRO stage is.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from baton import native
from baton.errors import BatonError
from baton.training.holdings import Holding
from baton.training.nodes import whereabouts

#: Pieces start at multiples of this, so that copies run on whole cache lines.
_ALIGNMENT_BYTES = 512
_WORD_BYTES = 8


@dataclass(frozen=True)
class _Storage:
    """`name`, `bytes` and `checksum` are what two ranks must have in common; `taken`: bytes with padding."""

    name: str
    bytes: int
    checksum: int
    address: int
    taken: int

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.name, self.bytes, self.checksum, self.taken


def share(pool: native.Pool, device: int, holdings: Sequence[Holding], taken: Sequence[int]) -> set[tuple[int, int]]:
    """Keeps once for the node what all of its ranks have alike of `holdings`; `taken`: the bytes of each with padding.

    Collective over all ranks. Returns the (address, bytes) that this pool need not save any more.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return set()
    mine = _storages(device, holdings, taken)
    node = _same_node([storage.key for storage in mine])
    alike = set(node.keys[0]).intersection(*node.keys) if len(node.ranks) > 1 else set[Any]()
    shared = [storage for storage in mine if storage.key in alike]
    # In the order of the names, which is the same everywhere; addresses are not.
    shared.sort(key=lambda storage: storage.key)
    pieces, total = _pieces(shared)
    file = _open(node, total)
    try:
        # Everybody takes part in everything: one that cannot must not leave the others waiting.
        usable = _all_agree(file is not None if total else True)
        if not total or not usable:
            if total and dist.get_rank() == 0:
                print(
                    "baton: frozen weights are kept once a rank: ranks cannot open each other's memory", file=sys.stderr
                )
            _all_agree(True)
            return set()
        assert file is not None
        pool.open_shared(file, total)
        begin, end = (total * part // len(node.ranks) for part in (node.position, node.position + 1))
        written = pieces[(pieces["offset"] >= begin) & (pieces["offset"] < end)]
        pool.write_shared(written)
        _all_agree(True)
        pool.adopt_shared(pieces)
        _check(shared, _storages(device, holdings, taken))
        return {(storage.address, storage.bytes) for storage in shared}
    finally:
        if file is not None:
            os.close(file)


def _storages(device: int, holdings: Sequence[Holding], taken: Sequence[int]) -> list[_Storage]:
    items: list[tuple[int, int, int, int, int, int]] = []
    for group, held in enumerate(holdings):
        words, rest = divmod(held.bytes, _WORD_BYTES)
        if words:
            items.append((held.address, 0, words, _WORD_BYTES, native.PLAIN, group))
        if rest:
            items.append((held.address + words * _WORD_BYTES, words, rest, 1, native.PLAIN, group))
    if not items:
        return []
    sums = native.checksum(device, np.array(items, dtype=native.CHECKSUM_ITEM), len(holdings))
    return [
        _Storage(min(held.names), held.bytes, int(checksum), held.address, size)
        for held, checksum, size in zip(holdings, sums, taken, strict=True)
    ]


def _check(shared: Sequence[_Storage], now: Sequence[_Storage]) -> None:
    """What was adopted is what was there. Raises BatonError FROZEN_CHANGED."""
    found = {storage.name: storage.checksum for storage in now}
    changed = [storage.name for storage in shared if found[storage.name] != storage.checksum]
    if changed:
        raise BatonError(
            "FROZEN_CHANGED",
            "Frozen weights that the ranks of a node share came back otherwise.",
            expected="the checksums of before",
            found=f"others for {len(changed)} of {len(shared)}: {', '.join(changed[:5])}",
            action="Please report this.",
        )


@dataclass(frozen=True)
class _Node:
    """The ranks of this node, this one's position among them, and what each has."""

    ranks: list[int]
    position: int
    keys: list[list[Any]]


def _same_node(keys: list[Any]) -> _Node:
    """Collective."""
    # Of other containers the process ids are not known.
    where = f"{whereabouts()} {os.stat('/proc/self/ns/pid').st_ino}"
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (where, keys))
    ranks = [rank for rank, (theirs, _) in enumerate(found) if theirs == where]
    return _Node(ranks, ranks.index(dist.get_rank()), [found[rank][1] for rank in ranks])


def _pieces(storages: list[_Storage]) -> tuple[native.Array, int]:
    """SHARED_PIECE for each, one after the other, and the size of all."""
    pieces = np.zeros(len(storages), dtype=native.SHARED_PIECE)
    total = 0
    for piece, storage in zip(pieces, storages, strict=True):
        piece["address"], piece["bytes"], piece["offset"] = storage.address, storage.taken, total
        total += -(-storage.taken // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return pieces, total


def _open(node: _Node, total: int) -> int | None:
    """The node's memfd, made by its first rank; None: nothing to share, or it cannot be opened. Collective."""
    own: int | None = None
    if total and node.position == 0:
        own = os.memfd_create("baton-frozen", os.MFD_CLOEXEC)
        # All of it now: ranks that made it larger at the same time could make it smaller for each other.
        os.ftruncate(own, -(-total // mmap.PAGESIZE) * mmap.PAGESIZE)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (os.getpid(), own))
    if not total or node.position == 0:
        return own
    pid, number = found[node.ranks[0]]
    try:
        return os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # another user's process, or a sandbox
        return None


def _all_agree(mine: bool) -> bool:
    """Whether all ranks say so. Collective."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return all(found)
