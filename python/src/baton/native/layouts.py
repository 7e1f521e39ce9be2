"""What libbaton takes and gives: arrays of its structures, and its reports."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN = 0xFFFF_FFFF_FFFF_FFFF
EVERYTHING = UNKNOWN

#: What the bytes of a declared range are worth (BATON_SAVED …).
SAVED, FROZEN, ZERO, DISCARD = 0, 1, 2, 3

#: What becomes of elements that are copied or summed up: nothing, or bfloat16 from float32 (BATON_PLAIN …).
PLAIN, ROUNDED = 0, 1

#: Array layouts of the C structures, for numpy. `address` and `bytes` in bytes.
RANGE = np.dtype([("address", "<u8"), ("bytes", "<u8")])
RUN = np.dtype([("slot", "<u4"), ("conversion", "<u4"), ("src_offset", "<u8"), ("dst", "<u8"), ("bytes", "<u8")])
SHARED_PIECE = np.dtype([("address", "<u8"), ("bytes", "<u8"), ("offset", "<u8")])
CHECKSUM_ITEM = np.dtype(
    [
        ("address", "<u8"),
        ("first_element", "<u8"),
        ("elements", "<u8"),
        ("element_bytes", "<u2"),
        ("conversion", "<u2"),
        ("group", "<u4"),
    ]
)

Array = npt.NDArray[Any]
U64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class PoolStats:
    base: int
    reserve_bytes: int
    segment_bytes: int
    segments: int
    mapped_segments: int
    mapped_bytes: int
    live_bytes: int
    live_blocks: int
    arena_bytes: int
    arena_used_bytes: int
    pending_bytes: int


@dataclass(frozen=True)
class PauseReport:
    released_bytes: int
    saved_bytes: int
    clean_bytes: int
    dead_bytes: int
    kept_bytes: int
    copy_ns: int
    total_ns: int
    simulated_ns: int | None


@dataclass(frozen=True)
class ResumeReport:
    mapped_bytes: int
    copied_bytes: int
    pending_bytes: int
    verified_bytes: int
    copy_ns: int
    total_ns: int
    simulated_ns: int | None


@dataclass(frozen=True)
class CopyReport:
    bytes: int
    runs: int
    total_ns: int
    simulated_ns: int | None


def plain(structure: Structure) -> dict[str, int | None]:
    """Fields of a report; None where libbaton has no figure."""
    values = {name: int(getattr(structure, name)) for name, *_ in structure._fields_}
    return {name: None if value == UNKNOWN and name == "simulated_ns" else value for name, value in values.items()}


def ranges(pairs: Sequence[tuple[int, int]] | Array) -> Array:
    """(address, bytes) pairs as an array of baton_range."""
    if isinstance(pairs, np.ndarray):
        return np.ascontiguousarray(pairs, dtype=RANGE)
    return np.array(list(pairs), dtype=RANGE)


def pointer(array: Array | None) -> int | None:
    """NULL for nothing and for no elements."""
    return None if array is None or array.size == 0 else array.ctypes.data
