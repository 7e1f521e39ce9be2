"""Copies and checksums on a device: the kernels of libbaton."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_void_p

import numpy as np

from baton import libbaton as abi
from baton.libbaton import check, library
from baton.native.layouts import CHECKSUM_ITEM, RUN, Array, CopyReport, U64s, plain, pointer


class CopyPlan:
    """Runs of bytes from numbered sources to fixed addresses; executed as often as wanted."""

    def __init__(self, device: int, runs: Array) -> None:
        array = np.ascontiguousarray(runs, dtype=RUN)
        handle = c_void_p()
        check(library().baton_copy_plan_create(device, pointer(array), array.size, byref(handle)))
        self._handle: c_void_p | None = handle

    def execute(self, bases: Sequence[int] | U64s) -> CopyReport:
        """Copies; `bases[slot]` is the address that a run's `src_offset` counts from."""
        if self._handle is None:
            raise ValueError("the copy plan is closed")
        array = np.ascontiguousarray(bases, dtype=np.uint64)
        report = abi.CopyReport()
        check(library().baton_copy_plan_execute(self._handle, pointer(array), array.size, byref(report)))
        return CopyReport(**plain(report))  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            check(library().baton_copy_plan_destroy(handle))


def load_kernels(device: int) -> None:
    """Makes the kernels of copies and checksums ready, which their first use would wait for (0.3 s on an H100)."""
    check(library().baton_kernels_load(device))


def checksum(device: int, items: Array, groups: int, *, indices_only: bool = False) -> U64s:
    """Layout-invariant checksums by group over `items` (an array of CHECKSUM_ITEM)."""
    array = np.ascontiguousarray(items, dtype=CHECKSUM_ITEM)
    sums = np.zeros(groups, dtype=np.uint64)
    check(library().baton_checksum(device, pointer(array), array.size, int(indices_only), pointer(sums), groups))
    return sums
