"""What is on the GPU only in the phase that needs it: a reference model, weights merged for a handoff.

The pool pauses and resumes by segment, so a part of it can be away while the rest is in use. What shares a segment with
something else stays with it.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        blocks = self._pool.blocks() if live is None else live
        self._pool.pause(live=live, keep=others(ranges, blocks, self._pool.base, self._pool.segment_bytes))
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

    def holds(self, ranges: Ranges) -> bool:
        """Whether any of `ranges` is parked."""
        return any(address in self._away for address, _ in ranges)


def others(ranges: Ranges, blocks: native.Array, base: int, unit: int) -> list[tuple[int, int]]:
    """All addresses from `base` on, but the segments of `unit` bytes in which only `ranges` have live `blocks`.

    A block is theirs when it lies in one of them. There may be very many of both.
    """
    starts, ends = _bounds(native.ranges(ranges))
    mine = _segments(starts - base, ends - base, unit)
    block_starts, block_ends = _bounds(blocks)
    position = np.searchsorted(starts, block_starts, side="right") - 1
    covered = np.zeros(len(block_starts), dtype=bool)
    inside = position >= 0
    covered[inside] = block_ends[inside] <= ends[position[inside]]
    # Both ascend, so of the blocks that begin at or before a segment the last one reaches farthest.
    first = (block_starts[~covered] - base) // unit
    last = np.maximum.accumulate((block_ends[~covered] - 1 - base) // unit)
    before = np.searchsorted(first, mine, side="right") - 1
    touched = np.zeros(len(mine), dtype=bool)
    touched[before >= 0] = last[before[before >= 0]] >= mine[before >= 0]
    return _gaps(mine[~touched], base, unit)


def _bounds(ranges: native.Array) -> tuple[native.Array, native.Array]:
    """Begin and end of each that is not empty, in the order of their begins."""
    kept = np.sort(ranges[ranges["bytes"] > 0], order=["address", "bytes"])
    starts = kept["address"].astype(np.int64)
    return starts, starts + kept["bytes"].astype(np.int64)


def _segments(starts: native.Array, ends: native.Array, unit: int) -> native.Array:
    """Numbers of the segments that these bytes touch, ascending, each once."""
    spans = [np.arange(start // unit, (end - 1) // unit + 1) for start, end in zip(starts, ends, strict=True)]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *spans]))


def _gaps(segments: native.Array, base: int, unit: int) -> list[tuple[int, int]]:
    """All that lies between these segments, before and after them."""
    begins = np.concatenate([[base], base + (segments + 1) * unit])
    finishes = np.concatenate([base + segments * unit, [base + _REACH]])
    some = finishes > begins
    return list(zip(begins[some].tolist(), (finishes[some] - begins[some]).tolist(), strict=True))
