"""Sync and sleep of Baton's engines, with a trainer's ranks under ZeRO-2 and ZeRO-3.

On one GPU there is one engine, and also two ranks; on several a rank on each GPU, and workers that take from all."""

from __future__ import annotations

import threading
import time

from baton.bench.gpu import limits
from baton.bench.gpu.desk import PROMPTS, Desk
from baton.bench.gpu.model import elements_of
from baton.bench.gpu.part import Job, Results, main, used_bytes
from baton.bench.gpu.sources import Sources, SyncTimes
from baton.errors import BatonError

#: (name of the samples, ZeRO stage, ranks), on a single GPU
ONE_GPU = (("zero2", 2, 1), ("zero3", 3, 1), ("zero3x2", 3, 2))
_SAMPLED_SYNCS = 3
#: Half of what an H100's driver clears of memory that was given back (test/gpu/clearing_costs.py: 5 ms a GiB).
_CLEARED_BYTES_A_SECOND = 100 << 30
_TOKENS = 8


def measure(job: Job, results: Results) -> None:
    limits.device_copy(results, 2 * elements_of(job.model) // job.tp, job.gpus)
    limits.peer_copies(results, job.gpus)
    layouts = ONE_GPU if job.gpus == 1 else (("zero2", 2, job.gpus), ("zero3", 3, job.gpus))
    with Desk(job) as desk:
        results.step("starting the engine")
        began = time.monotonic()
        desk.start_engines()
        results.value("start seconds", round(time.monotonic() - began, 1))
        results.value("weight bytes", desk.ready.weight_bytes)
        results.value("cache bytes", desk.ready.cache_bytes)
        for name, stage, world in layouts:
            results.step(f"sync, {name}")
            desk.wake("weights")
            sources = Sources(desk, stage, world)
            sync(job, results, sources, name)
            if name == "zero2":
                results.step("sleep and wake")
                sleep(job, results, desk, sources)
            desk.sleep()
            sources.close()
        results.step("ending the engine")
        desk.shutdown()


def sync(job: Job, results: Results, sources: Sources, name: str) -> None:
    """Leaves weights and cache awake."""
    results.value(f"{name} fallback", next((plan.fallback for plan in sources.plans if plan.fallback), None))
    first = sources.sync(checksums=True, compare=True)
    results.value(f"{name} first sync, compared with load_weights, seconds", first.seconds)
    differing = None if any(one.compared is None for one in first.answers) else differing_in(first)
    results.value(f"{name} parameters that differ from load_weights", differing)
    if differing:
        raise BatonError(
            "WEIGHTS_DIFFER",
            "The engines do not hold what their own load_weights would have put there.",
            expected="every parameter equal, to the bit",
            found=f"{len(differing)} differ: {', '.join(differing[:5])}",
            action="Please report this.",
        )
    plain = _woken(sources, checksums=False)
    for cycle in range(job.cycles):
        # In turns, so that neither is always the one that comes after the other.
        for checksums in (cycle % 2 == 0, cycle % 2 == 1):
            one = _woken(sources, checksums=checksums)
            added = " with checksums" if checksums else ""
            results.sample(f"{name} export{added} seconds", one.export_seconds)
            results.sample(f"{name} exported sync{added} seconds", one.take_seconds)
            # The engines sum while their caches wake, and open when both is done.
            results.sample(f"{name} cache after sync{added} seconds", one.meanwhile_seconds)
            plain = plain if checksums else one
        for what in ("map", "copy", "unmap"):
            results.sample(f"{name} {what} seconds", plain.most(f"{what}_seconds"))
        results.show()
    results.value(f"{name} copied bytes", plain.most("copied_bytes"))
    results.value(f"{name} copied from other GPUs bytes", sources.remote_bytes())
    results.value(f"{name} runs", plain.most("runs"))
    results.value(f"{name} descriptors", plain.descriptors)
    results.value(f"{name} segments with weights", _segments(sources))
    results.value(f"{name} bytes taken by a sync", taken(sources))


def _woken(sources: Sources, *, checksums: bool) -> SyncTimes:
    """A sync as in a run: weights have just been woken, the cache wakes as soon as they are there. The engines went to
    sleep a training step ago: right after it the driver clears what they gave back, which slows copies down."""
    desk = sources.desk
    desk.sleep()
    time.sleep((desk.ready.weight_bytes + desk.ready.cache_bytes) / _CLEARED_BYTES_A_SECOND)
    desk.wake("weights")
    return sources.sync(checksums=checksums, meanwhile=lambda: desk.wake("kv_cache"))


def differing_in(sync: SyncTimes) -> list[str]:
    """Parameters that differ from the engine's own load_weights, in any worker."""
    return sorted({name for answer in sync.answers for name in answer.compared or []})


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
    """The most that any GPU has in use during a sync beyond what it had before, by NVML, in bytes."""
    gpus = range(sources.desk.job.gpus)
    before = [used_bytes(gpu) for gpu in gpus]
    most, over = list(before), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for gpu in gpus:
                most[gpu] = max(most[gpu], used_bytes(gpu))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for _ in range(_SAMPLED_SYNCS):
            sources.sync(checksums=False)
    finally:
        over.set()
        watcher.join()
    return max(after - first for after, first in zip(most, before, strict=True))


def sleep(job: Job, results: Results, desk: Desk, sources: Sources) -> None:
    """Engines that hold the same weights say the same, before and after."""
    gpus = range(job.gpus)
    before = desk.generate(_TOKENS)
    results.value("tokens before", len(before[0]))
    results.value("engines that say the same", all(tokens == before[0] for tokens in before))
    results.value("awake bytes", max(used_bytes(gpu) for gpu in gpus))
    for _ in range(job.cycles + 1):
        results.timed("sleep seconds", desk.sleep)
        results.sample("asleep bytes", max(used_bytes(gpu) for gpu in gpus))
        results.timed("wake weights seconds", lambda: desk.wake("weights"))
        sources.sync(checksums=False)
        results.timed("wake cache seconds", lambda: desk.wake("kv_cache"))
        results.show()
    after = desk.generate(_TOKENS)
    results.value("tokens after", len(after[0]))
    results.value("the same tokens after sleep", after == before)
    if len(before[0]) != len(PROMPTS) * _TOKENS:
        raise AssertionError(f"{len(before[0])} tokens came of {len(PROMPTS)} prompts of {_TOKENS}")


if __name__ == "__main__":
    main(measure)
