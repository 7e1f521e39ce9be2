"""The partitions of other nodes, for the engines of this one: only under ZeRO-3, and only where there are other nodes.

Each rank gathers what its peers hold, the ranks at its own position on the other nodes. So the ranks of a node together
have everything, and each byte comes to a node once. It is done for every handoff: an engine drops its weights when it
sleeps, and takes all of them again, whether they have changed or not. What comes is parts of parameters in a fixed
order, whatever their sizes, cut into buckets of one size: besides the result no more than that is needed. The result
leaves the GPU with everything else that is made anew for each handoff.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from baton import faults, native
from baton.errors import BatonError
from baton.training.adapters import Weight
from baton.training.held import held
from baton.training.merging import MergedWeights
from baton.training.nodes import PeerGroup

#: Of all nodes together, in one collective. Twice of it at most is taken beside the result.
BUCKET_BYTES = 64 << 20
#: The copies and checksums like addresses that are multiples of this.
_ALIGNMENT_BYTES = 512
#: Between two looks at a collective; the first ones come sooner.
_MOST_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class PeerPiece:
    """Elements [start, start + elements) of a weight, which a peer holds, and where they lie here."""

    start: int
    elements: int
    address: int


@dataclass(frozen=True)
class _Stream:
    """The partitions of one dtype, one after another: (weight, place of its first element, elements of a share)."""

    weights: list[tuple[Any, int, int]]
    elements: int
    #: [peers, elements], without this rank's own.
    gathered: torch.Tensor


class PeerPartitions:
    """What this rank's peers hold of the policy's weights, in one buffer for each dtype."""

    def __init__(
        self,
        weights: Sequence[Weight],
        merged: MergedWeights | None,
        peers: PeerGroup,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """`weights`: all of them partitioned. Allocates: inside of the training memory, so that engines can map it."""
        self._merged = merged
        self._peers = peers
        self._bucket_bytes = bucket_bytes
        self._others = [place for place in range(len(peers.ranks)) if place != peers.mine]
        self._streams = [
            self._stream([weight.parameter for weight in weights if weight.parameter.dtype is dtype], dtype)
            for dtype in sorted({weight.parameter.dtype for weight in weights}, key=str)
        ]
        self._places = {
            id(parameter): (stream, place) for stream in self._streams for parameter, place, _ in stream.weights
        }

    def _stream(self, parameters: list[Any], dtype: torch.dtype) -> _Stream:
        unit = _ALIGNMENT_BYTES // dtype.itemsize
        weights: list[tuple[Any, int, int]] = []
        end = 0
        for parameter in parameters:
            share = int(parameter.ds_tensor.ds_numel)
            weights.append((parameter, end, share))
            end += -(-share // unit) * unit
        device = held(parameters[0]).device
        return _Stream(weights, end, torch.zeros(len(self._others), end, dtype=dtype, device=device))

    @property
    def buffers(self) -> list[torch.Tensor]:
        return [stream.gathered for stream in self._streams]

    def pieces(self, parameter: Any) -> Iterator[PeerPiece]:
        """What peers hold of a weight, without the padding of the last partitions."""
        stream, place = self._places[id(parameter)]
        share, whole = int(parameter.ds_tensor.ds_numel), int(parameter.ds_numel)
        for row, peer in enumerate(self._others):
            start = dist.get_group_rank(parameter.ds_process_group, self._peers.ranks[peer]) * share
            elements = max(0, min(share, whole - start))
            if elements:
                yield PeerPiece(start, elements, stream.gathered[row, place:].data_ptr())

    def gather(self) -> None:
        """Fills the buffers with what the peers hold now. Collective over the peers. Raises BatonError PEERS_SILENT."""
        with torch.no_grad():
            for stream in self._streams:
                self._gather(stream)

    def _gather(self, stream: _Stream) -> None:
        gathered = stream.gathered
        count = len(self._peers.ranks)
        most = max(1, self._bucket_bytes // (count * gathered.element_size()))
        length = min(most, stream.elements)
        mine = torch.empty(length, dtype=gathered.dtype, device=gathered.device)
        all_of_it = torch.empty(count * length, dtype=gathered.dtype, device=gathered.device)
        stale = faults.hit("rank.peers.stale") is not None
        last: Any = None
        for begin in range(0, stream.elements, length):
            size = min(length, stream.elements - begin)
            self._pack(stream, begin, mine[:size])
            received = all_of_it[: count * size]
            work = self._all_gather(received, mine[:size])
            # The first shows that all are there. On a GPU the others follow each other without the CPU.
            if last is None:
                self._await(work)
            work.wait()
            last = work
            if not stale:
                rows = received.view(count, size)
                for row, peer in enumerate(self._others):
                    gathered[row, begin : begin + size] = rows[peer]
        if last is not None:
            self._await(last)

    def _all_gather(self, received: torch.Tensor, mine: torch.Tensor) -> Any:
        return dist.all_gather_into_tensor(received, mine, group=self._peers.group, async_op=True)

    def _await(self, work: Any) -> None:
        """Until a collective is done. On a GPU `Work.wait` is for the stream, and knows no deadline."""
        seconds = self._peers.deadline_seconds
        end, poll = time.monotonic() + seconds, 1e-5
        while not work.is_completed():
            if time.monotonic() > end:
                raise self._silent(seconds)
            time.sleep(poll)
            poll = min(2 * poll, _MOST_POLL_SECONDS)

    def _silent(self, seconds: float) -> BatonError:
        others = [rank for place, rank in enumerate(self._peers.ranks) if place != self._peers.mine]
        names = f"rank {others[0]}" if len(others) == 1 else f"one of the ranks {', '.join(map(str, others))}"
        return BatonError(
            "PEERS_SILENT",
            "The ranks at this rank's position on other nodes did not all come to the handoff.",
            expected=f"their parts of the weights within {seconds:g} s, as long as any collective of the job may take",
            found=f"nothing from {names} of the job (RANK)",
            action="Look at what it is doing there (stopped, or on another path through the script?).",
        )

    def _pack(self, stream: _Stream, begin: int, into: torch.Tensor) -> None:
        """Elements [begin, begin + len(into)) of the stream, of this rank's own."""
        end = begin + into.numel()
        # The one that `begin` lies in: a look at all of them for each bucket would be seconds for a large model.
        earliest = bisect_right(stream.weights, begin, key=lambda weight: weight[1]) - 1
        for parameter, place, _ in stream.weights[earliest:]:
            if place >= end:
                return
            own = self._own(parameter)
            first, last = max(begin, place), min(end, place + own.numel())
            if first < last:
                into[first - begin : last - begin] = own[first - place : last - place]

    def _own(self, parameter: Any) -> torch.Tensor:
        merged = None if self._merged is None else self._merged.view(parameter)
        return held(parameter).view(-1) if merged is None else merged

    def summed(self, sums: native.U64s) -> native.U64s:
        """The sums over the peers, modulo 2^64, of what each has summed over its own. Collective over the peers.

        Raises BatonError PEERS_SILENT.
        """
        device = self._streams[0].gathered.device
        mine = torch.from_numpy(sums.view(np.int64).copy()).to(device)
        received = torch.empty(len(self._peers.ranks) * mine.numel(), dtype=torch.int64, device=device)
        work = self._all_gather(received, mine)
        self._await(work)
        work.wait()
        rows = received.cpu().numpy().view(np.uint64).reshape(len(self._peers.ranks), -1)
        return rows.sum(axis=0, dtype=np.uint64)
