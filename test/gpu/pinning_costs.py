"""What host memory costs before a GPU can copy to it: brought in page by page or in large pages, and registered.

    pinning_costs.py [--gib 8] [--threads 16]

Seconds a GiB of a memfd, as an arena is. Explains native/pool/host_pages.cc. Without a GPU nothing is registered.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any

MIB, GIB = 1 << 20, 1 << 30
LARGE_PAGE = 2 * MIB
PIECE = 512 * MIB
POPULATE_WRITE, COLLAPSE = 23, 25

LIBC = ctypes.CDLL("libc.so.6", use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def advise(begin: int, size: int, advice: int) -> None:
    if LIBC.madvise(begin, size, advice):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def small_pages(begin: int, size: int) -> None:
    advise(begin, size, POPULATE_WRITE)


def large_pages(begin: int, size: int) -> None:
    for at in range(begin, begin + size, LARGE_PAGE):
        advise(at, mmap.PAGESIZE, POPULATE_WRITE)
    advise(begin, size, COLLAPSE)


def in_parallel(work: Callable[[int, int], None], begin: int, size: int, threads: int) -> float:
    """Seconds."""
    share = size // threads // LARGE_PAGE * LARGE_PAGE
    parts = [(begin + i * share, share if i < threads - 1 else size - i * share) for i in range(threads)]
    running = [threading.Thread(target=work, args=part) for part in parts]
    began = time.perf_counter()
    for one in running:
        one.start()
    for one in running:
        one.join()
    return time.perf_counter() - began


def driver() -> Any:
    """libcuda with a context of GPU 0; None without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    context = ctypes.c_void_p()
    if cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) or cuda.cuCtxSetCurrent(context):
        return None
    return cuda


def registered(cuda: Any, begin: int, size: int) -> float:
    """Seconds; the memory is not registered afterwards."""
    pieces = range(begin, begin + size, PIECE)
    began = time.perf_counter()
    for at in pieces:
        if result := cuda.cuMemHostRegister_v2(ctypes.c_void_p(at), ctypes.c_size_t(PIECE), 3):
            raise SystemExit(f"cuMemHostRegister failed: {result}")
    seconds = time.perf_counter() - began
    for at in pieces:
        cuda.cuMemHostUnregister(ctypes.c_void_p(at))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=8)
    parser.add_argument("--threads", type=int, default=16)
    options = parser.parse_args()
    size, cuda = options.gib * GIB, driver()
    for name, work in (("small pages", small_pages), ("large pages", large_pages)):
        file = os.memfd_create("pinning-costs")
        os.ftruncate(file, size)
        room = LIBC.mmap(None, size + LARGE_PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
        begin = -(-room // LARGE_PAGE) * LARGE_PAGE
        LIBC.mmap(begin, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | 0x10 | 0x4000, file, 0)
        seconds = in_parallel(work, begin, size, options.threads) / options.gib
        registering = "" if cuda is None else f", registering them {registered(cuda, begin, size) / options.gib:.4f}"
        print(f"{name}: {seconds:.4f}{registering} s a GiB", flush=True)
        LIBC.munmap(room, size + LARGE_PAGE)
        os.close(file)


if __name__ == "__main__":
    main()
