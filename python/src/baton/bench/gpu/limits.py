"""What this very machine allows, measured in the process whose figures it is put beside. Nothing on a stand-in.

With several GPUs all of them copy at once: they may share what leads to the host, and to each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from baton.bench.gpu.part import Results, simulated
from baton.bench.gpu.ranks import gathered, together

_ROUNDS = 8
#: Of a pinned copy: large enough that its start does not count.
_PINNED_BYTES = 2 << 30
#: That each GPU takes from the others.
_PEER_BYTES = 4 << 30


def pinned_copies(results: Results) -> None:
    """Bytes a second between each rank's GPU and pinned memory, the best of some rounds each way. Collective: all
    ranks copy at once, and the last one ends a round."""
    if simulated():
        return
    results.step("measuring pinned copies")
    save, load = _pinned_seconds()
    for name, seconds in (("save", save), ("load", load)):
        rounds = [max(ranks) for ranks in zip(*gathered(seconds), strict=True)]
        results.value(f"limit {name} bytes/s", _PINNED_BYTES / min(rounds))
    torch.cuda.empty_cache()


def _pinned_seconds() -> tuple[list[float], list[float]]:
    host = torch.empty(_PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.zeros(_PINNED_BYTES, dtype=torch.uint8, device="cuda")
    save = _seconds(lambda: host.copy_(device, non_blocking=True), together)
    return save, _seconds(lambda: device.copy_(host, non_blocking=True), together)


def device_copy(results: Results, size: int, gpus: int = 1) -> None:
    """Seconds of a device-to-device copy of `size` bytes on each of these GPUs: all rounds, the first one cold."""
    if simulated():
        return
    results.step("measuring a device-to-device copy")
    for seconds in _device_seconds(size, gpus):
        results.sample("limit copy seconds", seconds)
    results.value("limit copy bytes", size)
    torch.cuda.empty_cache()


def _device_seconds(size: int, gpus: int) -> list[float]:
    sources = [torch.zeros(size, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in range(gpus)]
    pairs = [(torch.empty_like(source), source) for source in sources]
    return _seconds(lambda: _copy_all(pairs), lambda: _ready(gpus), gpus)


def peer_copies(results: Results, gpus: int) -> None:
    """Bytes a second that each GPU takes from the others, all at once, the best of some rounds."""
    if simulated() or gpus == 1:
        return
    results.step("measuring copies between the GPUs")
    share = _PEER_BYTES // (gpus - 1)
    results.value("limit peer bytes/s", share * (gpus - 1) / min(_peer_seconds(share, gpus)))
    results.value("peer access", all(torch.cuda.can_device_access_peer(0, gpu) for gpu in range(1, gpus)))
    torch.cuda.empty_cache()


def _peer_seconds(share: int, gpus: int) -> list[float]:
    sources = [torch.zeros(share, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in range(gpus)]
    pairs = [
        (torch.empty(share, dtype=torch.uint8, device=f"cuda:{gpu}"), sources[(gpu + step) % gpus])
        for step in range(1, gpus)  # at every moment each GPU gives to one and takes from one
        for gpu in range(gpus)
    ]
    return _seconds(lambda: _copy_all(pairs), lambda: _ready(gpus), gpus)


def _copy_all(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Queues all of them: torch copies on the source's stream, and the target's waits for it."""
    for target, source in pairs:
        target.copy_(source, non_blocking=True)


def _ready(gpus: int) -> None:
    for gpu in range(gpus):
        torch.cuda.synchronize(gpu)


def _seconds(work: Callable[[], object], ready: Callable[[], object], gpus: int = 0) -> list[float]:
    """Of some rounds; `ready` goes before each. gpus: how many of this process's; 0: the current one."""
    taken: list[float] = []
    for _ in range(_ROUNDS):
        ready()
        began = time.perf_counter()
        work()
        if gpus:
            _ready(gpus)
        else:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken
