"""The small engine's GPU memory: one pool for the weights, one for the KV cache, as vLLM's sleep mode has them.

On a stand-in GPU a device address is an address of this process, so a tensor is a view of pool memory. While a
pool is discarded its addresses stay reserved and a touch is a fault.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from baton import native
from baton.errors import BatonError

_ALIGNMENT_BYTES = 512


class Region:
    """One pool and the tensors in it."""

    def __init__(self, device: int, name: str) -> None:
        self.pool = native.Pool(device, name=name)
        self.awake = True

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of the pool as a tensor."""
        count = math.prod(shape)
        size = max(1, count * dtype.itemsize)
        address = self.pool.allocate(size, _ALIGNMENT_BYTES)
        block = (ctypes.c_char * size).from_address(address)
        return torch.frombuffer(block, dtype=dtype, count=count).view(shape) if count else torch.empty(shape)

    def discard(self) -> None:
        self.pool.discard()
        self.awake = False

    def wake(self) -> None:
        self.pool.resume()
        self.awake = True

    @property
    def mapped_bytes(self) -> int:
        return self.pool.info().mapped_bytes


def require_stand_in() -> None:
    """Raises BatonError SMALL_ENGINE_NEEDS_STAND_IN on a real GPU: its memory is not the CPU's to compute on."""
    driver = native.driver_probe()
    if not (driver.available and driver.simulated):
        raise BatonError(
            "SMALL_ENGINE_NEEDS_STAND_IN",
            "The small engine computes on the CPU and can only use stand-in GPUs.",
            expected="the stand-in libcuda of this repository",
            found=driver.path if driver.available else f"no driver: {driver.reason}",
            action="Use the vLLM engine on real GPUs.",
        )
