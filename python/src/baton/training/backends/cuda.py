"""Torch on a real GPU: tensors of torch's CUDA allocator are the training memory.

While it is open, torch's caching allocator takes its segments from the pool through a CUDAPluggableAllocator. Each
opening has a MemPool of its own, which goes when it is closed: what is cached in a MemPool that still exists is never
given back, not even by `torch.cuda.empty_cache()`.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from baton import native
from baton.errors import BatonError

if TYPE_CHECKING:
    import torch

#: Torch takes memory for blocks in this unit.
_QUANTUM_BYTES = 512


class CudaBackend:
    """Leads torch's CUDA allocator into a pool. Torch divides what it gets, so its own record says what is live."""

    device_type = "cuda"

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise BatonError(
                "UNSUPPORTED_DEVICE",
                "There is a CUDA driver, but torch cannot use it.",
                expected="a torch that was built for CUDA and sees the GPU",
                found=f"torch {torch.__version__}, CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}",
                action="Install a CUDA build of torch, or look at what `torch.cuda.init()` says.",
            )
        _refuse_expandable_segments()
        self._torch: Any = torch
        self._device = 0
        self._allocator: Any = None
        self._opened: Any = None

    def install(self, pool: native.Pool) -> None:
        native.check(native.library().baton_torch_cuda_install(pool.handle))
        self._device = pool.device
        self._allocator = self._torch.cuda.memory.CUDAPluggableAllocator(
            str(native.library_path()), "baton_torch_cuda_malloc", "baton_torch_cuda_free"
        )

    def open(self) -> None:
        with self._torch.cuda.device(self._device):
            self._opened = self._torch.cuda.MemPool(self._allocator.allocator())
        self._lead_in()

    def close(self) -> None:
        self._lead_out()
        self._opened = None

    def _lead_in(self) -> None:
        # Not torch.cuda.use_mem_pool: that is for the calling thread, and backward passes have their own.
        self._torch._C._cuda_beginAllocateToPool(self._device, self._opened.id)

    def _lead_out(self) -> None:
        self._torch._C._cuda_endAllocateToPool(self._device, self._opened.id)
        self._torch._C._cuda_releasePool(self._device, self._opened.id)  # what the beginning took

    @contextmanager
    def _outside(self) -> Generator[None]:
        """Allocations inside come from where torch usually takes them."""
        if self._opened is None:
            yield
            return
        self._lead_out()
        try:
            yield
        finally:
            self._lead_in()

    def rehome(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        if size == 0:
            return
        try:
            with self._torch.cuda.device(self._device):
                with self._outside():
                    copy = self._torch.UntypedStorage(size, device=storage.device)
                    copy.copy_(storage)
                # The storage stays the same object, so every view of it follows.
                storage.resize_(0)
                storage.resize_(size)
                storage.copy_(copy)
                self._torch.cuda.synchronize()
        except self._torch.OutOfMemoryError as error:
            raise BatonError(
                "CANNOT_MOVE",
                f"A tensor's memory could not be moved: {str(error).splitlines()[0]}",
                expected="room for it",
                found=f"{size} bytes",
                action="See how much memory is free on the device.",
            ) from error

    def blocks(self, pool: native.Pool) -> native.Array:
        """What torch has handed out and not got back. Blocks that wait for another stream count as free."""
        found: list[tuple[int, int]] = []
        for segment in self._torch.cuda.memory_snapshot(include_traces=False):
            if segment["device"] != self._device or not pool.owns(segment["address"]):
                continue
            address = segment["address"]
            for block in segment["blocks"]:
                if block["state"] == "active_allocated":
                    found.append((address, self.taken(block["requested_size"])))
                address += block["size"]
        return np.array(sorted(found), dtype=native.RANGE)

    def live(self, pool: native.Pool) -> native.Array | None:
        return self.blocks(pool)

    def taken(self, size: int) -> int:
        # Neighbouring blocks then touch each other, and are copied in one piece.
        return -(-size // _QUANTUM_BYTES) * _QUANTUM_BYTES

    def shared(self, storage: torch.UntypedStorage) -> bool:  # noqa: ARG002
        # Torch calls every CUDA storage shared. One that was sent to another process cannot be told apart.
        return False

    def settle(self) -> None:
        self._torch.cuda.synchronize(self._device)
        # Made at the first matrix product of a thread, wherever that is; made again when needed.
        self._torch._C._cuda_clearCublasWorkspaces()
        self._torch.cuda.empty_cache()


def _refuse_expandable_segments() -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        value = os.environ.get(name, "")
        if "expandable_segments:true" in value.replace(" ", "").lower():
            raise BatonError(
                "EXPANDABLE_SEGMENTS",
                "Torch is told to use expandable segments, which go past the training memory.",
                expected=f"{name} without expandable_segments:True",
                found=f"{name}={value}",
                action="Remove it from the environment.",
            )
