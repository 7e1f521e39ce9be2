"""Which ranks are on which node. A node is what one controller owns."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from baton.errors import BatonError


def whereabouts() -> str:
    """The same text on all ranks of a node, and another on every other node, also where both are on one machine."""
    return f"{socket.gethostname()} {_boot()} {os.environ.get('BATON_SOCKET', '')}"


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


@dataclass(frozen=True)
class Nodes:
    """Global ranks by node, in their order, and where this rank is among them."""

    ranks: list[list[int]]
    node: int
    position: int

    @classmethod
    def find(cls) -> Nodes:
        """Collective over all ranks."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls([[0]], 0, 0)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, whereabouts())
        by_place: dict[str, list[int]] = {}
        for rank, place in enumerate(found):
            by_place.setdefault(place, []).append(rank)
        ranks = list(by_place.values())
        rank = dist.get_rank()
        node = next(number for number, some in enumerate(ranks) if rank in some)
        return cls(ranks, node, ranks[node].index(rank))


#: A collective of the peers ends by our own deadline, with our own error, before torch's.
_LATER = timedelta(seconds=60)


def job_timeout() -> timedelta:
    """How long the collectives of the job may take, as its launcher or script has set it."""
    group: Any = dist.group.WORLD
    device = torch.device("cuda" if dist.get_backend() == dist.Backend.NCCL else "cpu")
    return group._get_backend(device).options._timeout


@dataclass(frozen=True)
class PeerGroup:
    """The ranks at this rank's position of every node, by node, and their process group."""

    ranks: list[int]
    #: This rank's own place among them.
    mine: int
    group: Any
    #: For one collective, from the first of them that comes to it.
    deadline_seconds: float

    @classmethod
    def of(cls, nodes: Nodes) -> PeerGroup | None:
        """None when there is one node. Collective over all ranks. Raises BatonError NODES_UNEVEN."""
        sizes = [len(some) for some in nodes.ranks]
        if len(sizes) == 1:
            return None
        if len(set(sizes)) > 1:
            raise BatonError(
                "NODES_UNEVEN",
                "ZeRO-3 over nodes with different numbers of ranks cannot be handed to their engines.",
                expected="as many ranks on every node, so that each has one peer on every other node",
                found=", ".join(f"{size} on node {node}" for node, size in enumerate(sizes)),
                action="Start as many ranks on every node, or use ZeRO-2, where each rank has all parameters.",
            )
        columns = [list(column) for column in zip(*nodes.ranks, strict=True)]
        # Every rank has to take part in the making of every group.
        timeout = job_timeout()
        groups = [dist.new_group(ranks, timeout=timeout + _LATER) for ranks in columns]
        return cls(columns[nodes.position], nodes.node, groups[nodes.position], timeout.total_seconds())
