"""Torch on the CPU, on a stand-in GPU: tensors of torch's CPU allocator are the training memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from baton import native
from baton.errors import BatonError
from baton.training.build import build_allocator

if TYPE_CHECKING:
    import torch


class CpuBackend:
    """Leads torch's CPU allocator into a pool. The pool keeps the blocks, so it knows what is live."""

    device_type = "cpu"

    def __init__(self) -> None:
        native.library()  # the allocator finds libbaton's functions among those of the process
        self._library = ctypes.CDLL(str(build_allocator()))
        self._library.baton_torch_install.argtypes = [ctypes.c_void_p]
        self._library.baton_torch_install.restype = ctypes.c_int32
        self._library.baton_torch_open.argtypes = [ctypes.c_int32]
        self._library.baton_torch_open.restype = None
        self._library.baton_torch_rehome.argtypes = [ctypes.c_uint64]
        self._library.baton_torch_rehome.restype = ctypes.c_char_p

    def install(self, pool: native.Pool) -> None:
        if self._library.baton_torch_install(pool.handle) != 0:
            raise BatonError(
                "SECOND_TRAINING_MEMORY",
                "This process has a training memory already.",
                expected="one a process, because torch has one CPU allocator",
                found="a second one",
                action="Use baton.training_memory(), which returns the same one each time.",
            )

    def open(self) -> None:
        self._library.baton_torch_open(1)

    def close(self) -> None:
        self._library.baton_torch_open(0)

    def rehome(self, storage: torch.UntypedStorage) -> None:
        reason = self._library.baton_torch_rehome(storage._cdata)
        if reason is not None:
            raise BatonError(
                "CANNOT_MOVE",
                f"A tensor's memory could not be moved: {reason.decode(errors='replace')}",
                expected="a CPU storage, and room for it",
                found=f"{storage.nbytes()} bytes",
                action="See how much memory is free on the device.",
            )

    def blocks(self, pool: native.Pool) -> native.Array:
        return pool.blocks()

    def live(self, pool: native.Pool) -> native.Array | None:  # noqa: ARG002
        return None

    def taken(self, size: int) -> int:
        return size

    def shared(self, storage: torch.UntypedStorage) -> bool:
        return bool(storage.is_shared())

    def settle(self) -> None:
        """Nothing runs ahead of Python on the CPU, and its allocator caches nothing."""
