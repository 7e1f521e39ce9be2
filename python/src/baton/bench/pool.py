"""Pause and resume of a pool against copies of the same bytes between buffers made the same way.

    python -m baton.bench.pool DEVICE MIB ROUNDS    (on a stand-in GPU or a real one)

Prints one JSON line: {"bytes", "pauseSeconds", "resumeSeconds", "saveSeconds", "loadSeconds", "simulated"}, lists of
one value a round. On a stand-in a pause is a copy into the arena's touched pages, after which the memory is given
back, and a resume a copy into memory that was just created. The peer does the same with a memfd of its own, one
`memcpy` each way: giving 256 MiB back and getting them again costs more than copying them.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time

from baton import native


def memory_file(name: str, size: int) -> tuple[int, mmap.mmap]:
    """A memfd with its pages allocated, mapped for reading and writing."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.posix_fallocate(fd, 0, size)
    return fd, mmap.mmap(fd, size)


def address_of(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def main(device: int, size: int, rounds: int) -> None:
    """Measures both in turns, so that a busy moment of the machine meets both."""
    arena_fd, arena = memory_file("arena", size)
    ctypes.memset(address_of(arena), 0, size)
    pool = native.Pool(device, name="bench", segment_bytes=64 << 20)
    pool.set_arena(arena_fd, 0, size)
    state = pool.allocate(size)
    ctypes.memset(state, 0x5A, size)

    host_fd, host = memory_file("host", size)
    ctypes.memset(address_of(host), 0, size)
    result: dict[str, list[float]] = {"pauseSeconds": [], "resumeSeconds": [], "saveSeconds": [], "loadSeconds": []}

    def timed(name: str, start: float) -> None:
        result[name].append(time.perf_counter() - start)

    source_fd, source = memory_file("source", size)
    ctypes.memset(address_of(source), 0x5A, size)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        pool.pause()
        timed("pauseSeconds", start)
        start = time.perf_counter()
        pool.resume()
        timed("resumeSeconds", start)

        start = time.perf_counter()
        ctypes.memmove(address_of(host), address_of(source), size)
        source.close()
        os.close(source_fd)
        timed("saveSeconds", start)
        start = time.perf_counter()
        source_fd, source = memory_file("source", size)
        ctypes.memmove(address_of(source), address_of(host), size)
        timed("loadSeconds", start)
    same = ctypes.string_at(state, size) == b"\x5a" * size
    if not same:
        raise SystemExit("the pool's bytes did not come back")
    simulated = bool(native.driver_probe().simulated)
    # The first round maps the arena and meets cold caches on both sides.
    print(json.dumps({"bytes": size, "simulated": simulated, **{k: v[1:] for k, v in result.items()}}), flush=True)
    pool.close()
    os.close(host_fd)
    os.close(arena_fd)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3]))
