"""The copy plan: what was recorded of `load_weights`, joined with what the ranks hold. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError
from baton.native import CHECKSUM_ITEM, PLAIN, ROUNDED, RUN
from baton.weights.coverage import check_covered
from baton.weights.dtypes import ELEMENT_BYTES
from baton.weights.manifest import Ints, RankPieces
from baton.weights.recorder import Fill, Recording
from baton.weights.views import extents_of, rows_of_copy, width_of

#: A copy without contiguous elements costs one run an element; more of them than this is a rearrangement.
MAX_SINGLE_ELEMENT_RUNS = 4096


@dataclass(frozen=True)
class Rows:
    """Contiguous elements of tensor `tensor` that belong at `address`; where `rounded`, as half as many bytes."""

    tensor: Ints
    start: Ints
    elements: Ints
    address: Ints
    rounded: npt.NDArray[np.bool_]

    def widths(self, element_bytes: Ints) -> Ints:
        """Bytes of an element at `address`; `element_bytes` are those of the trainer's tensors."""
        return element_bytes[self.tensor] >> self.rounded


class Pieces:
    """The pieces of all source ranks in one order of elements, gaps found and replicas left out."""

    def __init__(self, ranks: Sequence[RankPieces]) -> None:
        """Raises BatonError PIECES_MISSING when an element of a tensor is held by nobody."""
        self.ranks = tuple(ranks)
        self.tensors = ranks[0].tensors
        self.first = np.cumsum([0] + [tensor.elements for tensor in self.tensors], dtype=np.int64)
        self.element_bytes = np.array([ELEMENT_BYTES[tensor.dtype] for tensor in self.tensors], dtype=np.int64)
        tensor = np.concatenate([rank.tensor for rank in ranks])
        start = np.concatenate([rank.start for rank in ranks]) + self.first[tensor]
        end = start + np.concatenate([rank.elements for rank in ranks])
        offset = np.concatenate([rank.offset for rank in ranks])
        slot = np.repeat(np.arange(len(ranks)), [rank.tensor.size for rank in ranks])
        order = np.lexsort((slot, start))
        tensor, start, end, offset, slot = (a[order] for a in (tensor, start, end, offset, slot))
        # A replica begins before what was held already ends: only what it adds is kept.
        held = np.concatenate(([0], np.maximum.accumulate(end)[:-1])) if end.size else end
        fresh = np.maximum(start, held)
        keep = fresh < end
        self.start, self.end, self.slot = fresh[keep], end[keep], slot[keep]
        self.offset = (offset + (fresh - start) * self.element_bytes[tensor])[keep]
        self._check_gaps()

    def segments(self) -> list[Ints]:
        """For each rank, the numbers of the segments that its pieces lie in, ascending.

        All of them, not only those with slices of one worker: with tensors split both ways that is nearly the
        same, and comparing with `load_weights` needs whole tensors.
        """
        width = self.element_bytes[np.searchsorted(self.first, self.start, side="right") - 1]
        lengths = (self.end - self.start) * width
        return [
            segments_of(self.offset[mine], lengths[mine], rank.segment_bytes)
            for slot, rank in enumerate(self.ranks)
            for mine in [self.slot == slot]
        ]

    def _check_gaps(self) -> None:
        ends = np.concatenate(([0], self.end))
        starts = np.concatenate((self.start, self.first[-1:]))
        gaps = np.flatnonzero(starts != ends)
        if gaps.size:
            at = int(ends[gaps[0]])
            number = int(np.searchsorted(self.first, at, side="right")) - 1
            raise BatonError(
                "PIECES_MISSING",
                f"No rank holds element {at - int(self.first[number])} of {self.tensors[number].name!r}.",
                expected="every element of every parameter in some rank's manifest",
                found=f"{int((starts - ends)[gaps].sum())} elements that nobody holds",
                action="Please report this.",
            )

    def split(self, rows: Rows) -> npt.NDArray[np.void]:
        """The runs that fill `rows`: cut where a piece ends."""
        begin = self.first[rows.tensor] + rows.start
        end = begin + rows.elements
        first = np.searchsorted(self.start, begin, side="right") - 1
        last = np.searchsorted(self.start, end, side="left") - 1
        count = last - first + 1
        row = np.repeat(np.arange(begin.size), count)
        piece = first[row] + np.arange(row.size) - np.repeat(np.cumsum(count) - count, count)
        low = np.maximum(begin[row], self.start[piece])
        high = np.minimum(end[row], self.end[piece])
        width = rows.widths(self.element_bytes)[row]
        runs = np.zeros(row.size, dtype=RUN)
        runs["slot"] = self.slot[piece]
        runs["conversion"] = np.where(rows.rounded[row], ROUNDED, PLAIN)
        runs["src_offset"] = self.offset[piece] + (low - self.start[piece]) * self.element_bytes[rows.tensor][row]
        runs["dst"] = rows.address[row] + (low - begin[row]) * width
        runs["bytes"] = (high - low) * width
        return merge_runs(runs)


@dataclass(frozen=True)
class Plan:
    """Everything that a sync needs, but the memory itself."""

    #: The trainer's tensors and who holds them; a run's slot is an index into its ranks.
    pieces: Pieces
    #: Array of native.RUN; source offsets count from the base of the rank's pool.
    runs: npt.NDArray[np.void]
    #: Array of native.CHECKSUM_ITEM: this worker's elements, group = tensor.
    items: npt.NDArray[np.void]
    fills: tuple[Fill, ...]
    #: Why the engine's own load_weights is to be used instead; then `runs` and `items` are empty.
    fallback: str | None

    @property
    def copy_bytes(self) -> int:
        return int(self.runs["bytes"].sum())

    def rounded_tensors(self) -> Ints:
        """Those that are float32 on the trainer and bfloat16 in the engine, ascending."""
        source = self.pieces.element_bytes[self.items["group"]]
        return np.unique(self.items["group"][self.items["element_bytes"] < source]).astype(np.int64)

    def source_bytes(self) -> list[int]:
        """What is written of what each of the ranks has."""
        found = np.zeros(len(self.pieces.ranks), dtype=np.int64)
        np.add.at(found, self.runs["slot"], self.runs["bytes"].astype(np.int64))
        return [int(size) for size in found]

    def checksum_items(self) -> npt.NDArray[np.void]:
        """What this worker answers for: its own elements, or, when it falls back, every tensor as it was given to
        `load_weights` (where a tensor lies at a time is then not known; the addresses are 0)."""
        if self.fallback is None:
            return self.items
        whole = np.zeros(len(self.pieces.tensors), dtype=CHECKSUM_ITEM)
        whole["elements"] = np.diff(self.pieces.first)
        whole["element_bytes"] = self.pieces.element_bytes
        whole["group"] = np.arange(whole.size)
        return whole


def covered_elements(items: npt.NDArray[np.void], tensors: int) -> npt.NDArray[np.uint64]:
    """Elements in `items` by tensor (counted twice where there are two items for one)."""
    covered = np.zeros(tensors, dtype=np.uint64)
    np.add.at(covered, items["group"], items["elements"])
    return covered


def join(recording: Recording, ranks: Sequence[RankPieces]) -> Plan:
    """The plan for `recording` with parameters held by `ranks` (all of them sources).

    Raises BatonError PIECES_MISSING, or WEIGHTS_NOT_COVERED when a byte of the engine's parameters gets nothing.
    """
    pieces = Pieces(ranks)
    check_covered(recording)
    obstacle = recording.obstacle
    if obstacle is None:
        rows, obstacle = rows_of(recording)
        if obstacle is None:
            obstacle = _check_writes(recording, rows, pieces.element_bytes) or _check_widths(recording, rows)
        if obstacle is None:
            items = _items(rows, pieces.element_bytes)
            runs = pieces.split(rows)
            return Plan(pieces, runs, items, tuple(recording.fills), None)
    nothing = np.zeros(0, dtype=RUN), np.zeros(0, dtype=CHECKSUM_ITEM)
    return Plan(pieces, *nothing, (), obstacle)


def rows_of(recording: Recording) -> tuple[Rows, str | None]:
    """All recorded copies as rows, and an obstacle when one is a rearrangement of single elements."""
    parts = [rows_of_copy(copy, width_of(recording, copy)) for copy in recording.copies]
    for copy, (start, elements, _) in zip(recording.copies, parts, strict=True):
        if elements == 1 and start.size > MAX_SINGLE_ELEMENT_RUNS:
            name = recording.tensors[copy.source].name
            return _empty_rows(), f"{name!r} is rearranged element by element"
    if not parts:
        return _empty_rows(), None
    counts = [start.size for start, _, _ in parts]
    return Rows(
        np.repeat(np.array([copy.source for copy in recording.copies], dtype=np.int64), counts),
        np.concatenate([start for start, _, _ in parts]),
        np.repeat(np.array([elements for _, elements, _ in parts], dtype=np.int64), counts),
        np.concatenate([address for _, _, address in parts]),
        np.repeat([copy.rounded for copy in recording.copies], counts),
    ), None


def _empty_rows() -> Rows:
    nothing = np.zeros(0, dtype=np.int64)
    return Rows(nothing, nothing, nothing, nothing, np.zeros(0, dtype=np.bool_))


def merge_runs(runs: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Runs in order of destination, joined where source and destination both go on."""
    if runs.size == 0:
        return runs
    runs = runs[np.argsort(runs["dst"], kind="stable")]
    before, after = runs[:-1], runs[1:]
    read = before["bytes"] << (before["conversion"] == ROUNDED)
    goes_on = (
        (before["slot"] == after["slot"])
        & (before["conversion"] == after["conversion"])
        & (before["src_offset"] + read == after["src_offset"])
        & (before["dst"] + before["bytes"] == after["dst"])
    )
    heads = np.concatenate(([0], np.flatnonzero(~goes_on) + 1))
    merged = runs[heads]
    merged["bytes"] = np.add.reduceat(runs["bytes"], heads)
    return merged


def _items(rows: Rows, element_bytes: Ints) -> npt.NDArray[np.void]:
    """Checksum items for `rows`, joined where tensor and address both go on."""
    order = np.argsort(rows.address, kind="stable")
    tensor, start, elements, address = (a[order] for a in (rows.tensor, rows.start, rows.elements, rows.address))
    width = rows.widths(element_bytes)[order]
    goes_on = (
        (tensor[:-1] == tensor[1:])
        & (start[:-1] + elements[:-1] == start[1:])
        & (address[:-1] + elements[:-1] * width[:-1] == address[1:])
    )
    heads = np.concatenate(([0], np.flatnonzero(~goes_on) + 1)) if order.size else np.zeros(0, dtype=np.int64)
    items = np.zeros(heads.size, dtype=CHECKSUM_ITEM)
    items["address"], items["first_element"] = address[heads], start[heads]
    items["elements"] = np.add.reduceat(elements, heads) if heads.size else 0
    items["element_bytes"], items["group"] = width[heads], tensor[heads]
    return items


def _check_writes(recording: Recording, rows: Rows, element_bytes: Ints) -> str | None:
    """An obstacle when the order of writes matters.

    Fills are applied before copies, so a copy may lie over an earlier fill, and nothing else may overlap.
    """
    order = np.repeat([copy.order for copy in recording.copies], _row_counts(recording, rows))
    sort = np.argsort(rows.address, kind="stable")
    begin, order = rows.address[sort], order[sort]
    end = begin + (rows.elements * rows.widths(element_bytes))[sort]
    names = _Names(recording)
    twice = np.flatnonzero(begin[1:] < end[:-1])
    if twice.size:
        return f"{names.at(int(begin[twice[0] + 1]))} is written twice"
    filled = [extents_of(fill.target) for fill in recording.fills]
    for fill, (low, high) in zip(recording.fills, filled, strict=True):
        first, last = np.searchsorted(end, low, side="right"), np.searchsorted(begin, high, side="left")
        for i in np.flatnonzero(first < last):
            if order[first[i] : last[i]].min() < fill.order:
                return f"{names.at(int(low[i]))} is filled after it was copied"
    return None


def _check_widths(recording: Recording, rows: Rows) -> str | None:
    """An obstacle when a tensor is needed both as it is and rounded: it has one checksum."""
    both = np.intersect1d(rows.tensor[rows.rounded], rows.tensor[~rows.rounded])
    return f"{recording.tensors[both[0]].name!r} is copied as it is and rounded" if both.size else None


def _row_counts(recording: Recording, rows: Rows) -> list[int]:
    """Rows of each copy, from the sizes alone."""
    counts: list[int] = []
    at = 0
    for copy in recording.copies:
        total = int(np.prod(copy.shape, dtype=np.int64))
        each = int(rows.elements[at])
        counts.append(total // each)
        at += counts[-1]
    return counts


class _Names:
    def __init__(self, recording: Recording) -> None:
        self._parameters = sorted(recording.parameters, key=lambda p: p.address)
        self._starts = [parameter.address for parameter in self._parameters]

    def at(self, address: int) -> str:
        number = int(np.searchsorted(self._starts, address, side="right")) - 1
        return repr(self._parameters[number].name) if number >= 0 else hex(address)


def segments_of(offset: Ints, length: Ints, segment_bytes: int) -> Ints:
    """Numbers of the segments that [offset, offset + length) touch."""
    first = offset // segment_bytes
    last = (offset + length - 1) // segment_bytes
    count = last - first + 1
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return np.unique(np.repeat(first, count) + within)


def whole_tensors(pieces: Pieces, addresses: Sequence[tuple[int, int]]) -> npt.NDArray[np.void]:
    """Runs that assemble whole tensors: (tensor, address) pairs."""
    tensor = np.array([t for t, _ in addresses], dtype=np.int64)
    sizes = np.diff(pieces.first)[tensor]
    to = np.array([address for _, address in addresses], dtype=np.int64)
    rows = Rows(tensor, np.zeros_like(tensor), sizes, to, np.zeros(tensor.size, dtype=np.bool_))
    return pieces.split(rows)
