"""How much of a GPU this process holds, as NVML counts it: pools, and whatever libbaton and the driver keep beside."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_uint, c_ulonglong, c_void_p

_INSUFFICIENT_SIZE = 7
_NOT_AVAILABLE = 0xFFFF_FFFF_FFFF_FFFF


class _Process(Structure):
    _fields_ = [
        ("pid", c_uint),
        ("used", c_ulonglong),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    ]


class HeldBytes:
    """Asks NVML for one GPU. Exact on a stand-in; on a real GPU NVML's figure for a process can be stale."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._nvml: ctypes.CDLL | None = None
        self._handle = c_void_p()

    def __call__(self) -> int | None:
        """Bytes, 0 when NVML does not list this process, None when it cannot be asked or does not know."""
        nvml = self._open()
        if nvml is None:
            return None
        count = c_uint(0)
        status = nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle, byref(count), None)
        if status not in (0, _INSUFFICIENT_SIZE):
            return None
        count.value += 16  # processes may start between the two calls
        found = (_Process * count.value)()
        if nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle, byref(count), found) != 0:
            return None
        mine = [process.used for process in found[: count.value] if process.pid == os.getpid()]
        return None if _NOT_AVAILABLE in mine else sum(mine)

    def _open(self) -> ctypes.CDLL | None:
        if self._nvml is None:
            try:
                nvml = ctypes.CDLL("libnvidia-ml.so.1")
                nvml.nvmlDeviceGetHandleByIndex_v2.argtypes = [c_uint, POINTER(c_void_p)]
                nvml.nvmlDeviceGetComputeRunningProcesses_v3.argtypes = [c_void_p, POINTER(c_uint), c_void_p]
            except (OSError, AttributeError):
                return None
            if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByIndex_v2(self._device, byref(self._handle)) != 0:
                return None
            self._nvml = nvml
        return self._nvml
