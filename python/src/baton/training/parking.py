"""What is on the GPU only in the phase that needs it: a reference model, weights merged for a handoff.

The pool pauses and resumes by segment, so a part of it can be away while the rest is in use. What shares a segment with
something else stays with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from baton import native

#: More address space than any pool reserves.
_REACH = 1 << 46

Ranges = Sequence[tuple[int, int]]


class Parking:
    """The ranges of one pool that are away outside of handoffs."""

    def __init__(self, pool: native.Pool) -> None:
        self._pool = pool
        self._away: dict[int, int] = {}

    def park(self, ranges: Ranges, live: native.Array | None) -> None:
        """Releases the segments in which nothing but `ranges` is `live`.

        Contents are kept as the pool's declarations say. Waits for a resume in the background.
        """
        self._pool.pause(live=live, keep=self._others(ranges, live))
        self._away.update(ranges)

    def bring_back(self, ranges: Ranges | None = None) -> None:
        """Brings what is parked back: all of it, or only `ranges`. Waits for a resume in the background."""
        wanted = set(self._away) if ranges is None else {address for address, _ in ranges}
        if not wanted & set(self._away):
            return
        staying = {address: size for address, size in self._away.items() if address not in wanted}
        self._pool.resume(leave=list(staying.items()))
        self._away = staying

    def stay(self, ranges: Ranges) -> Ranges:
        """What the resume that ends a handoff shall leave away: `ranges`, and nothing else any more."""
        self._away = dict(ranges)
        return ranges

    def _others(self, ranges: Ranges, live: native.Array | None) -> Ranges:
        """All of the pool's addresses but the segments in which only `ranges` are live."""
        blocks = self._pool.blocks() if live is None else live
        mine = self._segments(ranges)
        starts = np.sort(np.array([address for address, _ in ranges], dtype=np.uint64))
        ends = {address: address + size for address, size in ranges}
        for block in blocks:
            address, size = int(block["address"]), int(block["bytes"])
            position = int(np.searchsorted(starts, np.uint64(address), side="right")) - 1
            covered = position >= 0 and address + size <= ends[int(starts[position])]
            if not covered:
                mine -= self._segments([(address, size)])
        return list(_gaps(sorted(mine), self._pool.base, self._pool.segment_bytes))

    def _segments(self, ranges: Ranges) -> set[int]:
        base, unit = self._pool.base, self._pool.segment_bytes
        found: set[int] = set()
        for address, size in ranges:
            if size > 0:
                found.update(range((address - base) // unit, (address + size - 1 - base) // unit + 1))
        return found


def _gaps(segments: Iterable[int], base: int, unit: int) -> Iterable[tuple[int, int]]:
    begin = base
    for index in segments:
        start = base + index * unit
        if start > begin:
            yield begin, start - begin
        begin = start + unit
    yield begin, base + _REACH - begin
