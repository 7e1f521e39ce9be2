"""vLLM's weights and KV cache in Baton's pools, in the place of vLLM's own sleep allocator.

A `VllmPools` stands where vLLM keeps the one instance of its CuMemAllocator, so vLLM's workers build the model and the
cache inside `use_memory_pool("weights")` and `("kv_cache")` as they always do. Sleeping discards both pools in a few
large pieces. What lies in them beside parameters and cache (rotary tables, scales, tables of blocks) is small,
cannot be learned from the trainer, and is kept in host memory meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from baton import native
from baton.errors import BatonError

MIB = 1 << 20
#: Pieces of physical memory. Creating and mapping one costs the same whatever its size (0.1 to 0.3 ms), and half of the
#: last one is wasted on average: about so many to a part.
SEGMENTS = 16
SMALLEST_SEGMENT_BYTES, LARGEST_SEGMENT_BYTES = 16 * MIB, 4096 * MIB
#: Where nothing is known of the part's size; and for what vLLM may put elsewhere.
UNKNOWN_SEGMENT_BYTES = 256 * MIB
OTHER_SEGMENT_BYTES = 2 * MIB

_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)


def outside(blocks: Iterable[tuple[int, int]], contents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (address, bytes) of `blocks` that touch none of `contents`."""
    ends = sorted((address, address + size) for address, size in contents if size)
    found: list[tuple[int, int]] = []
    at = 0
    for address, size in sorted(blocks):
        while at < len(ends) and ends[at][1] <= address:
            at += 1
        if at == len(ends) or ends[at][0] >= address + size:
            found.append((address, size))
    return found


def segment_bytes(expected: int | None) -> int:
    """The size of the pieces that a part of about `expected` bytes is made of: a power of two."""
    if expected is None:
        return UNKNOWN_SEGMENT_BYTES
    wanted = 1 << max(0, (expected // SEGMENTS - 1).bit_length())
    return min(max(wanted, SMALLEST_SEGMENT_BYTES), LARGEST_SEGMENT_BYTES)


@dataclass
class _Part:
    """One tag's memory."""

    pool: native.Pool
    awake: bool = True
    #: torch's pools and allocators on it; torch holds neither of them.
    torch_pools: list[Any] = field(default_factory=list)
    #: Small things to be kept while asleep: views of them, and pinned memory for all of them, one after the other.
    views: list[Tensor] | None = None
    host: Tensor | None = None


class VllmPools:
    """One a process, as vLLM wants it. The methods without a prefix are those of vLLM's MemAllocator."""

    def __init__(self, expected_bytes: Mapping[str, int | None]) -> None:
        """`expected_bytes`: about how large the part of each tag will be, None where that is not known."""
        self._parts: dict[str, _Part] = {}
        self._tag = "default"
        self._expected = expected_bytes
        self._device = 0
        self._given_back: set[int] = set()
        # ctypes frees a callback that nobody refers to.
        self._callbacks = (_ALLOCATE(self._allocate), _FREE(self._free))
        self.failure: BatonError | None = None

    @contextlib.contextmanager
    def use_memory_pool(self, tag: str | None = None) -> Generator[None]:
        """What this thread allocates on the GPU meanwhile lies in the pool of `tag`."""
        expandable = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
        if expandable:  # pools and expandable segments exclude each other in torch
            _set_allocator("expandable_segments:False")
        before, self._tag = self._tag, tag or "default"
        self._device = torch.cuda.current_device()
        allocate, free = (ctypes.cast(callback, ctypes.c_void_p).value or 0 for callback in self._callbacks)
        allocator = torch._C._cuda_customAllocator(allocate, free)
        pool = torch.cuda.MemPool(allocator)
        part = self._part(self._tag)
        part.torch_pools.append((pool, allocator))
        try:
            with torch.cuda.use_mem_pool(pool):
                yield
        except torch.OutOfMemoryError as error:
            raise (self.failure or error) from error
        finally:
            self._tag = before
            if expandable:
                _set_allocator("expandable_segments:True")
        # torch keeps what was freed in this pool for ever: nothing will be allocated in it again.
        torch.cuda.synchronize()
        for segment in pool.snapshot():
            if segment["allocated_size"] == 0:
                self._given_back.add(int(segment["address"]))
                part.pool.free(int(segment["address"]))
        part.pool.trim()

    def get_current_usage(self) -> int:
        return sum(part.pool.info().live_bytes for part in self._parts.values())

    def sleep(self, offload_tags: Any = None) -> None:
        raise _not_by_vllm("sleep", offload_tags)

    def wake_up(self, tags: Any = None) -> None:
        raise _not_by_vllm("wake_up", tags)

    def release_pools(self) -> None:
        """vLLM calls this at the end of its worker; the memory ends with the process."""

    def mapped_bytes(self, tag: str) -> int:
        part = self._parts.get(tag)
        return 0 if part is None else part.pool.info().mapped_bytes

    def awake(self, tag: str) -> bool:
        part = self._parts.get(tag)
        return part is None or part.awake

    def discard(self, tag: str, contents: Iterable[Tensor]) -> None:
        """Gives the memory of `tag` back. `contents` need not be kept; whatever else lives there is."""
        part = self._parts.get(tag)
        if part is None or not part.awake:
            return
        if part.views is None:
            part.views = [
                view_of(address, size, self._device) for address, size in outside(_live_blocks(part), _places(contents))
            ]
            if part.views:
                total = sum(view.numel() for view in part.views)
                part.host = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        if part.host is not None:
            part.host.copy_(torch.cat(part.views))
        part.pool.discard()
        part.awake = False

    def wake(self, tag: str) -> None:
        """Maps the memory of `tag` again, at its addresses. Raises BatonError OUT_OF_MEMORY."""
        part = self._parts.get(tag)
        if part is None or part.awake:
            return
        part.pool.resume()
        part.awake = True
        if part.host is not None and part.views:
            pieces = part.host.to(part.views[0].device).split([view.numel() for view in part.views])
            torch._foreach_copy_(part.views, list(pieces))  # pyright: ignore[reportPrivateImportUsage]

    def kept_bytes(self, tag: str) -> int:
        """Bytes that are saved in host memory while asleep."""
        part = self._parts.get(tag)
        return 0 if part is None or part.views is None else sum(view.numel() for view in part.views)

    def _part(self, tag: str) -> _Part:
        part = self._parts.get(tag)
        if part is None:
            segment = segment_bytes(self._expected[tag]) if tag in self._expected else OTHER_SEGMENT_BYTES
            pool = native.Pool(self._device, name=f"engine {tag}", segment_bytes=segment)
            part = self._parts[tag] = _Part(pool)
        return part

    def _allocate(self, size: int, *_device_and_stream: int | None) -> int | None:
        """For torch. None: torch raises its out-of-memory error."""
        try:
            return self._part(self._tag).pool.allocate(size, 2 * MIB if size >= 2 * MIB else 512)
        except BatonError as error:
            self.failure = error
        except BaseException as error:  # an exception must not pass through torch's own code
            self.failure = BatonError.from_exception(error, "Allocating engine memory")
        print(f"baton: {self.failure}", file=sys.stderr, flush=True)
        return None

    def _free(self, address: int, *_size_device_and_stream: int | None) -> None:
        """For torch."""
        try:
            if address in self._given_back:
                self._given_back.discard(address)
                return
            for part in self._parts.values():
                if part.pool.owns(address):
                    part.pool.free(address)
                    return
        except BaseException as error:
            print(f"baton: freeing engine memory: {error}", file=sys.stderr, flush=True)


def _set_allocator(settings: str) -> None:
    # torch renamed it; both names are there in 2.11.
    torch.cuda.memory._set_allocator_settings(settings)  # pyright: ignore[reportDeprecated]


def install(expected_bytes: Mapping[str, int | None]) -> VllmPools:
    """Puts pools into the place of vLLM's allocator, in this process. To be done before the model is built."""
    from vllm.device_allocator.cumem import CuMemAllocator  # pyright: ignore

    found = CuMemAllocator.instance
    if isinstance(found, VllmPools):
        return found
    pools = VllmPools(expected_bytes)
    CuMemAllocator.instance = pools
    return pools


def _places(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return [(storage.data_ptr(), storage.nbytes()) for storage in storages]


def _live_blocks(part: _Part) -> list[tuple[int, int]]:
    """(address, bytes) of what torch has handed out of this part."""
    blocks: list[tuple[int, int]] = []
    for pool, _ in part.torch_pools:
        for segment in pool.snapshot():
            address = int(segment["address"])
            for block in segment["blocks"]:
                if block["state"] == "active_allocated":
                    blocks.append((int(block.get("address", address)), int(block["size"])))
                address += int(block["size"])
    return blocks


class _Bytes:
    """Memory that torch takes for a tensor of bytes without owning it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def view_of(address: int, size: int, device: int) -> Tensor:
    """`size` bytes at a device address as a tensor of uint8 that owns nothing."""
    return torch.as_tensor(_Bytes(address, size), device=torch.device("cuda", device))


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        return tensors_in(list(values.values()))
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []


def _not_by_vllm(method: str, given: Any) -> BatonError:
    return BatonError(
        "ENGINE_SLEEPS_BY_BATON",
        f"vLLM's own {method} was called on an engine of Baton's.",
        expected="sleeping and waking by the controller",
        found=f"{method}({given!r})",
        action="Remove the call; the controller puts engines to sleep.",
    )
