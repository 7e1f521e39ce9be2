"""How torch's allocations on one kind of device get into a pool: the seam between training memory and torch.

A backend says how the allocations of torch are led into a pool while it is open, how a storage changes its home, and
which parts of the pool are live. There is one for torch tensors on the CPU, used on stand-in GPUs, and one for real
ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from baton import native
from baton.errors import BatonError

if TYPE_CHECKING:
    import torch


class Backend(Protocol):
    """What training memory asks of torch on one kind of device."""

    #: The torch device type of tensors that belong into the pool.
    device_type: str

    def install(self, pool: native.Pool) -> None:
        """Makes torch ask the pool while it is open. Once per process."""
        ...

    def open(self) -> None:
        """From now on torch's allocations of all threads come from the pool."""
        ...

    def close(self) -> None:
        """From now on they come from where torch usually takes them."""
        ...

    def rehome(self, storage: torch.UntypedStorage) -> None:
        """Moves the storage's bytes to the memory that allocations come from now; all its tensors follow."""
        ...

    def blocks(self, pool: native.Pool) -> native.Array:
        """What torch has allocated in the pool and not freed (native.RANGE), in address order."""
        ...

    def live(self, pool: native.Pool) -> native.Array | None:
        """The live ranges of the pool (native.RANGE); None: the blocks that the pool itself handed out."""
        ...

    def taken(self, size: int) -> int:
        """The bytes that a storage of `size` bytes has for itself in `live`."""
        ...

    def shared(self, storage: torch.UntypedStorage) -> bool:
        """Whether other processes map the storage's memory, as far as torch knows."""
        ...

    def settle(self) -> None:
        """Ends work under way and gives what torch caches back to the pool and the device."""
        ...


def choose() -> Backend:
    """The backend for the driver of this process. Raises BatonError NO_DRIVER or UNSUPPORTED_DEVICE."""
    driver = native.driver_probe()
    if not driver.available:
        raise BatonError(
            "NO_DRIVER",
            "There is neither a CUDA driver nor a stand-in GPU for the training memory.",
            expected="libcuda.so.1",
            found=driver.reason,
            action="Start the script with `baton run`, which provides stand-in GPUs on a machine without any.",
        )
    if not driver.simulated:
        from baton.training.backends.cuda import CudaBackend

        return CudaBackend()
    from baton.training.backends.cpu import CpuBackend

    return CpuBackend()


__all__: list[Any] = ["Backend", "choose"]
