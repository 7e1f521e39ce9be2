"""libbaton for Python: a thin ctypes layer over native/capi/baton.h, every failure a `BatonError`.

Sizes and offsets are bytes, addresses are device addresses (addresses of this process on a stand-in GPU).
`None` stands for BATON_UNKNOWN. ctypes lets go of the interpreter lock during a call, so pausing and resuming do
not hold up other threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from baton import libbaton as abi
from baton.errors import BatonError
from baton.libbaton import check, library, library_path

__all__ = [
    "CHECKSUM_ITEM",
    "DISCARD",
    "EVERYTHING",
    "FROZEN",
    "RANGE",
    "RUN",
    "SAVED",
    "SHARED_PIECE",
    "UNKNOWN",
    "ZERO",
    "Array",
    "CopyPlan",
    "CopyReport",
    "DriverInfo",
    "Import",
    "PauseReport",
    "Pool",
    "PoolStats",
    "ResumeReport",
    "U64s",
    "check",
    "checksum",
    "device_memory",
    "driver_probe",
    "gpu_count",
    "library",
    "library_path",
    "ranges",
    "version",
    "watchdog_start",
]

UNKNOWN = 0xFFFF_FFFF_FFFF_FFFF
EVERYTHING = UNKNOWN

#: What the bytes of a declared range are worth (BATON_SAVED …).
SAVED, FROZEN, ZERO, DISCARD = 0, 1, 2, 3

#: Array layouts of the C structures, for numpy. `address` and `bytes` in bytes.
RANGE = np.dtype([("address", "<u8"), ("bytes", "<u8")])
RUN = np.dtype([("slot", "<u4"), ("reserved", "<u4"), ("src_offset", "<u8"), ("dst", "<u8"), ("bytes", "<u8")])
SHARED_PIECE = np.dtype([("address", "<u8"), ("bytes", "<u8"), ("offset", "<u8")])
CHECKSUM_ITEM = np.dtype(
    [("address", "<u8"), ("first_element", "<u8"), ("elements", "<u8"), ("element_bytes", "<u4"), ("group", "<u4")]
)

Array = npt.NDArray[Any]
U64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class DriverInfo:
    """The CUDA driver of this process; `simulated`: it is the stand-in."""

    available: bool
    simulated: bool
    driver_version: int
    device_count: int
    path: str
    reason: str


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


def _plain(structure: Structure) -> dict[str, int | None]:
    values = {name: int(getattr(structure, name)) for name, *_ in structure._fields_}
    return {name: None if value == UNKNOWN and name == "simulated_ns" else value for name, value in values.items()}


def version() -> str:
    return library().baton_version().decode()


def driver_probe() -> DriverInfo:
    info = abi.DriverInfo()
    check(library().baton_driver_probe(byref(info)))
    return DriverInfo(
        bool(info.available),
        bool(info.simulated),
        info.driver_version,
        info.device_count,
        info.path.decode(errors="replace"),
        info.reason.decode(errors="replace"),
    )


def gpu_count() -> int:
    """GPUs of the node as NVML counts them, whatever CUDA_VISIBLE_DEVICES says; CUDA stays untouched.

    Raises BatonError DRIVER_NOT_FOUND, DRIVER_SYMBOL_MISSING or DRIVER_INIT_FAILED.
    """
    count = c_uint32()
    check(library().baton_gpu_count(byref(count)))
    return count.value


def device_memory(device: int) -> tuple[int, int]:
    """(free, total) bytes of the device."""
    free, total = c_uint64(), c_uint64()
    check(library().baton_device_memory(device, byref(free), byref(total)))
    return free.value, total.value


def watchdog_start(pid: int, start_time: int) -> None:
    """Ends this process by SIGKILL when process `pid` (with that field 22 of /proc/pid/stat) is gone."""
    check(library().baton_watchdog_start(pid, start_time))


def ranges(pairs: Sequence[tuple[int, int]] | Array) -> Array:
    """(address, bytes) pairs as an array of baton_range."""
    if isinstance(pairs, np.ndarray):
        return np.ascontiguousarray(pairs, dtype=RANGE)
    return np.array(list(pairs), dtype=RANGE)


def _pointer(array: Array | None) -> int | None:
    return None if array is None or array.size == 0 else array.ctypes.data


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
        return PoolStats(**_plain(stats))  # pyright: ignore[reportArgumentType]

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
            check(library().baton_pool_blocks(self.handle, _pointer(found), found.size, byref(count)))
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
        check(library().baton_pool_declare(self.handle, kind, _pointer(array), array.size))

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
                _pointer(live),
                0 if live is None else live.size,
                _pointer(kept),
                kept.size,
                want_bytes,
                byref(report),
            )
        )
        return PauseReport(**_plain(report))  # pyright: ignore[reportArgumentType]

    def discard(self) -> PauseReport:
        """Releases all segments and forgets what they held."""
        report = abi.PauseReport()
        check(library().baton_pool_discard(self.handle, byref(report)))
        return PauseReport(**_plain(report))  # pyright: ignore[reportArgumentType]

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
                self.handle, _pointer(now), now.size, _pointer(away), away.size, int(wait), byref(report)
            )
        )
        return ResumeReport(**_plain(report))  # pyright: ignore[reportArgumentType]

    def wait(self, deadline_ms: int) -> ResumeReport:
        """Waits for a resume in the background. Raises BatonError DEADLINE."""
        report = abi.ResumeReport()
        check(library().baton_pool_wait(self.handle, deadline_ms, byref(report)))
        return ResumeReport(**_plain(report))  # pyright: ignore[reportArgumentType]

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
                _pointer(numbers),
                _pointer(descriptors),
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


class CopyPlan:
    """Runs of bytes from numbered sources to fixed addresses; executed as often as wanted."""

    def __init__(self, device: int, runs: Array) -> None:
        array = np.ascontiguousarray(runs, dtype=RUN)
        handle = c_void_p()
        check(library().baton_copy_plan_create(device, _pointer(array), array.size, byref(handle)))
        self._handle: c_void_p | None = handle

    def execute(self, bases: Sequence[int] | U64s) -> CopyReport:
        """Copies; `bases[slot]` is the address that a run's `src_offset` counts from."""
        if self._handle is None:
            raise ValueError("the copy plan is closed")
        array = np.ascontiguousarray(bases, dtype=np.uint64)
        report = abi.CopyReport()
        check(library().baton_copy_plan_execute(self._handle, _pointer(array), array.size, byref(report)))
        return CopyReport(**_plain(report))  # pyright: ignore[reportArgumentType]

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
    check(library().baton_checksum(device, _pointer(array), array.size, int(indices_only), _pointer(sums), groups))
    return sums
