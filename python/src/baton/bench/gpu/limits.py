"""What this very machine allows, measured in the process whose figures it is put beside. Nothing on a stand-in."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from baton.bench.gpu.part import Results, simulated

_ROUNDS = 8
#: Of a pinned copy: large enough that its start does not count.
_PINNED_BYTES = 2 << 30


def pinned_copies(results: Results) -> None:
    """Bytes a second between the GPU and pinned memory, the best of some rounds each way."""
    if simulated():
        return
    results.step("measuring pinned copies")
    save, load = _pinned_seconds()
    results.value("limit save bytes/s", _PINNED_BYTES / min(save))
    results.value("limit load bytes/s", _PINNED_BYTES / min(load))
    torch.cuda.empty_cache()


def _pinned_seconds() -> tuple[list[float], list[float]]:
    host = torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.zeros(_PINNED_BYTES, dtype=torch.uint8, device="cuda")
    save = _seconds(lambda: host.copy_(device, non_blocking=True))
    return save, _seconds(lambda: device.copy_(host, non_blocking=True))


def device_copy(results: Results, size: int) -> None:
    """Seconds of a device-to-device copy of `size` bytes: all rounds, the first one cold."""
    if simulated():
        return
    results.step("measuring a device-to-device copy")
    for seconds in _device_seconds(size):
        results.sample("limit copy seconds", seconds)
    results.value("limit copy bytes", size)
    torch.cuda.empty_cache()


def _device_seconds(size: int) -> list[float]:
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source))


def _seconds(work: Callable[[], object]) -> list[float]:
    taken: list[float] = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken
