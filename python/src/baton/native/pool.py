"""Pausable memory of this process, and segments of other processes' pools."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int32, c_uint64, c_void_p
from typing import Literal

import numpy as np

from baton import libbaton as abi
from baton.errors import BatonError
from baton.libbaton import check, library
from baton.native.layouts import (
    EVERYTHING,
    RANGE,
    Array,
    PauseReport,
    PoolStats,
    ResumeReport,
    plain,
    pointer,
    ranges,
)


class Pool:
    """Pausable memory on one device. Destroyed by `close`, or with the process."""

    def __init__(
        self,
        device: int,
        *,
        name: str,
        exportable: bool = False,
        segment_bytes: int = 0,
        reserve_bytes: int = 0,
    ) -> None:
        options = abi.PoolOptions(device, int(exportable), segment_bytes, reserve_bytes, name.encode()[:31])
        handle = c_void_p()
        check(library().baton_pool_create(byref(options), byref(handle)))
        self._handle: c_void_p | None = handle
        self.device = device
        self.name = name
        stats = self.info()
        self.base = stats.base
        self.segment_bytes = stats.segment_bytes

    @property
    def handle(self) -> c_void_p:
        """The `baton_pool *`, for other native code."""
        if self._handle is None:
            raise BatonError(
                "POOL_CLOSED",
                f"The pool {self.name!r} is closed.",
                expected="an open pool",
                found="a call after close()",
                action="Do not use a pool after closing it.",
            )
        return self._handle

    def close(self) -> None:
        """Unmaps and releases everything; addresses in it are invalid afterwards."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            check(library().baton_pool_destroy(handle))

    def info(self) -> PoolStats:
        stats = abi.PoolStats()
        check(library().baton_pool_info(self.handle, byref(stats)))
        return PoolStats(**plain(stats))  # pyright: ignore[reportArgumentType]

    def allocate(self, bytes: int, alignment: int = 512) -> int:
        address = c_uint64()
        check(library().baton_pool_allocate(self.handle, bytes, alignment, byref(address)))
        return address.value

    def free(self, address: int) -> None:
        check(library().baton_pool_free(self.handle, address))

    def owns(self, address: int) -> bool:
        return bool(library().baton_pool_owns(self.handle, address))

    def blocks(self) -> Array:
        """Live blocks in address order, as an array of RANGE."""
        count = c_uint64()
        check(library().baton_pool_blocks(self.handle, None, 0, byref(count)))
        while True:
            found = np.zeros(count.value, dtype=RANGE)
            check(library().baton_pool_blocks(self.handle, pointer(found), found.size, byref(count)))
            if count.value <= found.size:
                return found[: count.value]

    def trim(self) -> int:
        """Releases segments without a live block; returns the bytes released."""
        released = c_uint64()
        check(library().baton_pool_trim(self.handle, byref(released)))
        return released.value

    def declare(self, kind: int, what: Sequence[tuple[int, int]] | Array) -> None:
        """Replaces the ranges declared as `kind` (SAVED, FROZEN, ZERO, DISCARD)."""
        array = ranges(what)
        check(library().baton_pool_declare(self.handle, kind, pointer(array), array.size))

    def verify_frozen(self, first_n: int) -> None:
        check(library().baton_pool_verify_frozen(self.handle, first_n))

    def open_arena(self, fd: int, capacity_bytes: int) -> None:
        """The memfd to save into, which grows as needed; `fd` is duplicated."""
        check(library().baton_pool_open_arena(self.handle, fd, 0, capacity_bytes))

    def grow_arena(self, bytes: int) -> None:
        """Brings in and pins `bytes` of the arena now, rather than in the pause that needs them."""
        check(library().baton_pool_grow_arena(self.handle, bytes))

    def set_arena(self, fd: int, offset_bytes: int, bytes: int) -> None:
        """The memfd that a pause saves into. `fd` is duplicated."""
        check(library().baton_pool_set_arena(self.handle, fd, offset_bytes, bytes))

    def open_shared(self, fd: int, bytes: int) -> None:
        """A memfd in which processes keep once what they have alike; `fd` is duplicated. See baton.h."""
        check(library().baton_pool_open_shared(self.handle, fd, bytes))

    def write_shared(self, pieces: Array) -> None:
        """SHARED_PIECE: from this pool to the memfd."""
        check(library().baton_pool_write_shared(self.handle, pieces.ctypes.data, pieces.size))

    def adopt_shared(self, pieces: Array) -> None:
        """SHARED_PIECE: from the memfd to this pool, which need not save these ranges while they are frozen."""
        check(library().baton_pool_adopt_shared(self.handle, pieces.ctypes.data, pieces.size))

    def pause(
        self,
        *,
        live: Array | None = None,
        keep: Sequence[tuple[int, int]] | Array = (),
        want_bytes: int = EVERYTHING,
    ) -> PauseReport:
        """Releases segments that touch none of `keep`. `live` None: the pool's own blocks."""
        kept = ranges(keep)
        report = abi.PauseReport()
        check(
            library().baton_pool_pause(
                self.handle,
                pointer(live),
                0 if live is None else live.size,
                pointer(kept),
                kept.size,
                want_bytes,
                byref(report),
            )
        )
        return PauseReport(**plain(report))  # pyright: ignore[reportArgumentType]

    def discard(self) -> PauseReport:
        """Releases all segments and forgets what they held."""
        report = abi.PauseReport()
        check(library().baton_pool_discard(self.handle, byref(report)))
        return PauseReport(**plain(report))  # pyright: ignore[reportArgumentType]

    def resume(
        self,
        *,
        first: Sequence[tuple[int, int]] | Array = (),
        leave: Sequence[tuple[int, int]] | Array = (),
        wait: bool = True,
    ) -> ResumeReport:
        """Maps everything back; with `wait` False only what touches `first` is back when this returns.

        Segments in which nothing but `leave` was live stay away until a later call.
        """
        now, away = ranges(first), ranges(leave)
        report = abi.ResumeReport()
        check(
            library().baton_pool_resume(
                self.handle, pointer(now), now.size, pointer(away), away.size, int(wait), byref(report)
            )
        )
        return ResumeReport(**plain(report))  # pyright: ignore[reportArgumentType]

    def wait(self, deadline_ms: int) -> ResumeReport:
        """Waits for a resume in the background. Raises BatonError DEADLINE."""
        report = abi.ResumeReport()
        check(library().baton_pool_wait(self.handle, deadline_ms, byref(report)))
        return ResumeReport(**plain(report))  # pyright: ignore[reportArgumentType]

    def export(self, segment: int) -> int:
        """A descriptor of the segment's memory; the caller closes it at once after passing it on."""
        fd = c_int32()
        check(library().baton_pool_export(self.handle, segment, byref(fd)))
        return fd.value


class Import:
    """Segments of another process's pool, mapped read-only at `base + segment * segment_bytes`."""

    def __init__(self, device: int, segment_bytes: int, segments: Sequence[int], fds: Sequence[int]) -> None:
        numbers = np.asarray(segments, dtype=np.uint64)
        descriptors = np.asarray(fds, dtype=np.int32)
        if numbers.size != descriptors.size:
            raise ValueError(f"{numbers.size} segments but {descriptors.size} descriptors")
        handle, base = c_void_p(), c_uint64()
        check(
            library().baton_import_open(
                device,
                segment_bytes,
                pointer(numbers),
                pointer(descriptors),
                numbers.size,
                byref(handle),
                byref(base),
            )
        )
        self._handle: c_void_p | None = handle
        self.base = base.value

    def close(self) -> None:
        """Unmaps. After this the exporter's memory is no longer held by this process."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            check(library().baton_import_close(handle))

    def __enter__(self) -> Import:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.close()
        return False
