"""Sync and sleep of Baton's engine: one engine, and trainer's ranks under ZeRO-2, ZeRO-3, and two on one GPU."""

from __future__ import annotations

import threading
import time

from baton.bench.gpu import limits
from baton.bench.gpu.desk import Desk, Sources
from baton.bench.gpu.model import elements_of
from baton.bench.gpu.part import Job, Results, main, used_bytes

#: (name of the samples, ZeRO stage, ranks on this GPU)
LAYOUTS = (("zero2", 2, 1), ("zero3", 3, 1), ("zero3x2", 3, 2))
_SAMPLED_SYNCS = 3


def measure(job: Job, results: Results) -> None:
    limits.device_copy(results, 2 * elements_of(job.model))
    with Desk(job) as desk:
        results.step("starting the engine")
        began = time.monotonic()
        desk.start_engine()
        results.value("start seconds", round(time.monotonic() - began, 1))
        results.value("weight bytes", desk.ready.weight_bytes)
        results.value("cache bytes", desk.ready.cache_bytes)
        for name, stage, world in LAYOUTS:
            results.step(f"sync, {name}")
            desk.wake("weights")
            sources = Sources(desk, stage, world)
            sync(job, results, sources, name)
            if name == "zero2":
                desk.wake("kv_cache")
                results.step("sleep and wake")
                sleep(job, results, desk, sources)
            desk.sleep()
            sources.close()
        results.step("ending the engine")
        desk.shutdown()


def sync(job: Job, results: Results, sources: Sources, name: str) -> None:
    results.value(f"{name} fallback", sources.plan.fallback)
    first = sources.sync(checksums=True, compare=True)
    results.value(f"{name} first sync, compared with load_weights, seconds", first.seconds)
    results.value(f"{name} parameters that differ from load_weights", first.answer.compared)
    plain = sources.sync(checksums=False)
    for _ in range(job.cycles):
        proven = sources.sync(checksums=True)
        results.sample(f"{name} sync with checksums seconds", proven.seconds)
        plain = sources.sync(checksums=False)
        results.sample(f"{name} sync seconds", plain.seconds)
        for what in ("map", "copy", "unmap"):
            results.sample(f"{name} {what} seconds", getattr(plain.answer, f"{what}_seconds"))
        results.show()
    results.value(f"{name} copied bytes", plain.answer.copied_bytes)
    results.value(f"{name} runs", plain.answer.runs)
    results.value(f"{name} descriptors", plain.segments)
    results.value(f"{name} segments with weights", _segments(sources))
    results.value(f"{name} bytes taken by a sync", taken(sources))


def _segments(sources: Sources) -> int:
    """How many segments hold parameters, by the ranks' manifests."""
    from baton.protocol import arrays

    count = 0
    for manifest in sources.manifests:
        offsets = arrays.u64s(manifest.piece_offset, "pieceOffset")
        elements = arrays.u64s(manifest.piece_elements, "pieceElements")
        first = offsets // manifest.segment_bytes
        last = (offsets + elements * 2 - 1) // manifest.segment_bytes
        count += len({number for a, b in zip(first, last, strict=True) for number in range(int(a), int(b) + 1)})
    return count


def taken(sources: Sources) -> int:
    """The most that the GPU has in use during a sync beyond what it had before, by NVML, in bytes."""
    before = used_bytes()
    most, over = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, used_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for _ in range(_SAMPLED_SYNCS):
            sources.sync(checksums=False)
    finally:
        over.set()
        watcher.join()
    return most - before


def sleep(job: Job, results: Results, desk: Desk, sources: Sources) -> None:
    results.value("tokens before", desk.generate(8))
    results.value("awake bytes", used_bytes())
    for _ in range(job.cycles + 1):
        results.timed("sleep seconds", desk.sleep)
        results.sample("asleep bytes", used_bytes())
        results.timed("wake weights seconds", lambda: desk.wake("weights"))
        sources.sync(checksums=False)
        results.timed("wake cache seconds", lambda: desk.wake("kv_cache"))
        results.show()
    results.value("tokens after", desk.generate(8))


if __name__ == "__main__":
    main(measure)
