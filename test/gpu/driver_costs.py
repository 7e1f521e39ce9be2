"""What the driver's calls for memory cost, by the size of the segments; with several GPUs, one process on each at once.

    driver_costs.py [--gpus N] [--gib 12]

Milliseconds for all segments of so many GiB, the median of some rounds. Explains what a pause and a sync cost beside
their copies, and hence the sizes in baton/training/sizes.py; of a return see pool_check.py. Needs nothing but the driver.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from statistics import median
from typing import Any

MIB, GIB = 1 << 20, 1 << 30
SEGMENTS = (64 * MIB, 256 * MIB, 1024 * MIB)
ROUNDS = 5


class Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class Properties(ctypes.Structure):
    _fields_ = (
        *(("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", Location)),
        *(("window", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)),
    )


class Access(ctypes.Structure):
    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class Memory:
    """Segments of one size on one GPU, at addresses of their own."""

    def __init__(self, gpu: int, total: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._location = Location(1, gpu)
        context, base, stream, host = (ctypes.c_void_p() for _ in range(4))
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu)
        self._call("cuCtxSetCurrent", context)
        self._call("cuMemAddressReserve", ctypes.byref(base), *map(ctypes.c_size_t, (total, 0, 0, 0)))
        self._call("cuStreamCreate", ctypes.byref(stream), 1)
        self._call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(total), 0)
        self._base, self._stream, self._host = base.value or 0, stream, host.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        if result := getattr(self._cuda, name)(*arguments):
            raise SystemExit(f"{name} failed: {result}")

    def at(self, index: int, size: int) -> ctypes.c_uint64:
        return ctypes.c_uint64(self._base + index * size)

    def create(self, size: int) -> ctypes.c_uint64:
        handle, properties = ctypes.c_uint64(), Properties(1, 1, self._location, None)
        arguments = (ctypes.c_size_t(size), ctypes.byref(properties), ctypes.c_uint64(0))
        self._call("cuMemCreate", ctypes.byref(handle), *arguments)
        return handle

    def map(self, index: int, size: int, handle: ctypes.c_uint64) -> None:
        none = ctypes.c_size_t(0)
        self._call("cuMemMap", self.at(index, size), ctypes.c_size_t(size), none, handle, ctypes.c_uint64(0))
        access = Access(self._location, 3)
        one = ctypes.c_size_t(1)
        self._call("cuMemSetAccess", self.at(index, size), ctypes.c_size_t(size), ctypes.byref(access), one)

    def unmap(self, index: int, size: int) -> None:
        self._call("cuMemUnmap", self.at(index, size), ctypes.c_size_t(size))

    def release(self, handle: ctypes.c_uint64) -> None:
        self._call("cuMemRelease", handle)

    def export(self, handle: ctypes.c_uint64) -> None:
        descriptor = ctypes.c_int()
        self._call("cuMemExportToShareableHandle", ctypes.byref(descriptor), handle, 1, ctypes.c_uint64(0))
        os.close(descriptor.value)

    def copy(self, index: int, size: int, save: bool) -> None:
        host, device = ctypes.c_void_p(self._host + index * size), self.at(index, size)
        pair = (host, device) if save else (device, host)
        name = "cuMemcpyDtoHAsync_v2" if save else "cuMemcpyHtoDAsync_v2"
        self._call(name, *pair, ctypes.c_size_t(size), self._stream)

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")


def one_round(memory: Memory, size: int, count: int, meet: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each step, for all `count` segments."""
    spent: dict[str, float] = {}

    def step(name: str, work: Callable[[], object]) -> None:
        meet()
        began = time.perf_counter()
        work()
        spent[name] = 1e3 * (time.perf_counter() - began)

    everyone = range(count)
    handles: list[ctypes.c_uint64] = []
    step("create", lambda: handles.extend(memory.create(size) for _ in everyone))
    step("map", lambda: [memory.map(i, size, handles[i]) for i in everyone])
    step("export", lambda: [memory.export(handle) for handle in handles])
    step("save", lambda: ([memory.copy(i, size, True) for i in everyone], memory.synchronize()))
    step("load", lambda: ([memory.copy(i, size, False) for i in everyone], memory.synchronize()))
    step("unmap", lambda: [memory.unmap(i, size) for i in everyone])
    step("release", lambda: [memory.release(handle) for handle in handles])
    return spent


def measure(gpu: int, total: int, barrier: Any, answers: Any) -> None:
    memory = Memory(gpu, total)
    for size in SEGMENTS:
        rounds = [one_round(memory, size, total // size, barrier.wait) for _ in range(ROUNDS)]
        answers.put((gpu, size, {name: median(one[name] for one in rounds) for name in rounds[0]}))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gib", type=float, default=12)
    options = parser.parse_args()
    context = get_context("spawn")
    barrier, answers = context.Barrier(options.gpus, timeout=120), context.Queue()
    given = (int(options.gib * GIB), barrier, answers)
    processes = [context.Process(target=measure, args=(gpu, *given)) for gpu in range(options.gpus)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    while not answers.empty():
        gpu, size, spent = answers.get()
        figures = ", ".join(f"{name} {ms:.2f}" for name, ms in spent.items())
        print(f"GPU {gpu}, {int(options.gib * GIB) // size} segments of {size // MIB} MiB: {figures} ms", flush=True)
    return max(process.exitcode or 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main())
