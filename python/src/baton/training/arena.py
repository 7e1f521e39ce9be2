"""The arena of a rank's pool grows while the training state is built, so that the first pause need not wait for it.

Bringing in and pinning host memory takes 0.05 s a GiB where the kernel makes large pages, else some 0.25. How much a
pause will save is not known before the end, but what lives in the pool already will be saved.
"""

from __future__ import annotations

import contextlib
import os
import threading

from baton import native
from baton.errors import BatonError

_MIB = 1 << 20
#: A pinned piece costs something however small it is; more than is needed is host memory taken for nothing.
_LARGEST_UNIT_BYTES = 256 * _MIB
#: What native/pool/host_pages.cc asks the kernel for: a piece that ends within one has small pages there.
_LARGE_PAGE_BYTES = 2 * _MIB
_LOOK_SECONDS = 0.02


class ArenaGrowth:
    """Follows a pool with its arena in a thread of its own, until it is told how large the arena shall be."""

    def __init__(self, pool: native.Pool, fd: int, capacity_bytes: int) -> None:
        """Opens the arena. `fd`, a memfd, is duplicated. Raises BatonError ARENA_UNUSABLE, ARENA_IN_USE."""
        pool.open_arena(fd, capacity_bytes)
        self._pool = pool
        self._capacity_bytes = capacity_bytes
        self._settled = threading.Event()
        self._final_bytes: int | None = None
        self._thread = threading.Thread(target=self._follow, name="baton-arena", daemon=True)
        self._thread.start()

    def settle(self, bytes: int) -> None:
        """The training state is complete, and needs `bytes`: grow so far, and no further."""
        self._final_bytes = bytes
        self._settled.set()

    def wait(self) -> None:
        """Until it has grown as far as `settle` said. Only measurements need that."""
        self._settled.wait()
        self._thread.join()

    def _follow(self) -> None:
        # What cannot be had here is asked for again by the pause that needs it, and is an error there.
        with contextlib.suppress(BatonError):
            native.load_kernels(self._pool.device)
        with contextlib.suppress(BatonError):
            have = 0
            while self._final_bytes is None:
                live = self._pool.info().live_bytes
                if live > have:
                    have = _rounded(live)
                    self._pool.grow_arena(min(have, self._capacity_bytes))
                self._settled.wait(_LOOK_SECONDS)
            self._pool.grow_arena(self._final_bytes)


def _rounded(bytes: int) -> int:
    unit = min(_LARGEST_UNIT_BYTES, max(_LARGE_PAGE_BYTES, bytes // 16 // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES))
    return -(-bytes // unit) * unit


def own_arena(pool: native.Pool) -> ArenaGrowth:
    """An arena of this process's own, for training memory without a controller; it ends with the process."""
    capacity = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fd = os.memfd_create("baton-arena", os.MFD_CLOEXEC)
    try:
        return ArenaGrowth(pool, fd, capacity)
    finally:
        os.close(fd)
