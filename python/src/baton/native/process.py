"""What concerns this process as a whole: its driver, its GPUs, and whose end is its own."""

from __future__ import annotations

from ctypes import byref, c_uint32, c_uint64
from dataclasses import dataclass

from baton import libbaton as abi
from baton.libbaton import check, library


@dataclass(frozen=True)
class DriverInfo:
    """The CUDA driver of this process; `simulated`: it is the stand-in."""

    available: bool
    simulated: bool
    driver_version: int
    device_count: int
    path: str
    reason: str


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
