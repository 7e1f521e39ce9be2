"""libbaton for Python: a thin ctypes layer over native/capi/baton.h, every failure a `BatonError`.

Sizes and offsets are bytes, addresses are device addresses (addresses of this process on a stand-in GPU).
`None` stands for BATON_UNKNOWN. ctypes lets go of the interpreter lock during a call, so pausing and resuming do
not hold up other threads.
"""

from baton.libbaton import check, library, library_path
from baton.native.copies import CopyPlan, checksum, load_kernels
from baton.native.layouts import (
    CHECKSUM_ITEM,
    DISCARD,
    EVERYTHING,
    FROZEN,
    PLAIN,
    RANGE,
    ROUNDED,
    RUN,
    SAVED,
    SHARED_PIECE,
    UNKNOWN,
    ZERO,
    Array,
    CopyReport,
    PauseReport,
    PoolStats,
    ResumeReport,
    U64s,
    ranges,
)
from baton.native.pool import Import, Pool
from baton.native.process import DriverInfo, device_memory, driver_probe, gpu_count, version, watchdog_start

__all__ = [
    "CHECKSUM_ITEM",
    "DISCARD",
    "EVERYTHING",
    "FROZEN",
    "PLAIN",
    "RANGE",
    "ROUNDED",
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
    "load_kernels",
    "ranges",
    "version",
    "watchdog_start",
]
