"""The controller's part of a sync, with ranks that hold a model as a trainer's do."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from baton.bench.gpu.desk import ANSWER_SECONDS, Client, Desk
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol import messages as m
from baton.protocol.frames import MAX_DESCRIPTORS

T = TypeVar("T")


@dataclass(frozen=True)
class SyncTimes:
    """One sync as the caller sees it, and as each worker says; seconds and bytes."""

    #: Until the ranks have exported and summed: a run does that while its engines wake.
    export_seconds: float
    #: From then until the engines have the weights.
    take_seconds: float
    #: From then, for what was done meanwhile and until the engines' sums were there.
    meanwhile_seconds: float
    answers: list[m.Synced]
    descriptors: int

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.export_seconds + self.take_seconds + self.meanwhile_seconds

    def most(self, what: str) -> float:
        """Of the workers' answers."""
        return max(getattr(answer, what) for answer in self.answers)


class Sources:
    """Processes that hold the model's tensors as a trainer's ranks do: rank r on GPU r, or all on the only one."""

    def __init__(self, desk: Desk, stage: int, world: int) -> None:
        self.desk, self.world, self.stage = desk, world, stage
        self.gpus = [rank % desk.job.gpus for rank in range(world)]
        first = len(desk.children)
        for rank, gpu in enumerate(self.gpus):
            spec = {"model": desk.job.model, "stage": stage, "rank": rank, "world": world, "gpu": gpu}
            desk.spawn("baton.bench.gpu.weights_rank", BATON_BENCH_RANK=json.dumps(spec), BATON_STANDIN_ROLE="rank")
        self.children = desk.children[first:]
        self.ranks = [desk.accept("rank", rank, ANSWER_SECONDS) for rank in range(world)]
        self.manifests = [rank.expect(m.Manifest)[0] for rank in self.ranks]
        seq = desk.next_seq()
        for worker in desk.workers:
            for rank, manifest in enumerate(self.manifests):
                last = rank == world - 1
                worker.frames.send(
                    m.RankManifest(seq=seq, rank=rank, gpu=self.gpus[rank], last=last, manifest=manifest)
                )
        for engine in desk.engines:
            engine.frames.send(m.Plan(seq=seq))
        self.plans = _answers(desk, m.Planned)

    def remote_bytes(self) -> int:
        """What a sync copies from other GPUs, by the worker that has the most of it."""
        return max(
            sum(source.copy_bytes for source in plan.sources if self.gpus[source.rank] != gpu)
            for gpu, plan in enumerate(self.plans)
        )

    def sync(
        self, *, checksums: bool, compare: bool = False, meanwhile: Callable[[], None] = lambda: None
    ) -> SyncTimes:
        """Ranks export, the workers take the weights; the engines' weights must be awake. `meanwhile`: what a run does
        while the engines sum up what they have."""
        desk = self.desk
        began = time.perf_counter()
        desk.epoch += 1
        wanted: dict[int, set[int]] = {}
        for plan in self.plans:
            for source in plan.sources:
                segments = arrays.u64s(source.segments, "segments")
                wanted.setdefault(source.rank, set()).update(segments.tolist())
        # Every rank sums what it holds, whoever takes it.
        asked = range(self.world) if checksums else sorted(wanted)
        for rank in asked:
            segments = arrays.binary_u64(sorted(wanted.get(rank, ())))
            frame = m.ExportSegments(seq=desk.next_seq(), segments=segments, checksums=checksums)
            self.ranks[rank].frames.send(frame)
        sums: dict[int, Any] = {}
        exported: dict[tuple[int, int], int] = {}
        for rank in asked:
            while True:
                answer, descriptors = self.ranks[rank].expect(m.Exported)
                for segment, descriptor in zip(arrays.u64s(answer.segments, "segments"), descriptors, strict=True):
                    exported[rank, int(segment)] = descriptor
                if answer.last:
                    sums[rank] = answer.checksums
                    break
        has_exported = time.perf_counter()
        seq = desk.next_seq()
        for worker, plan in zip(desk.workers, self.plans, strict=True):
            self._give(worker, plan, exported, seq, checksums, compare)
        for descriptor in exported.values():
            os.close(descriptor)
        for engine in desk.engines:
            engine.frames.send(m.Sync(seq=seq, epoch=desk.epoch, compare=compare))
        answers = _answers(desk, m.Synced)
        has_synced = time.perf_counter()
        meanwhile()
        held = _answers(desk, m.Summed) if checksums else []
        ended = time.perf_counter()
        if checksums:
            self._check(sums, held)
        return SyncTimes(has_exported - began, has_synced - has_exported, ended - has_synced, answers, len(exported))

    def _give(
        self,
        worker: Client,
        plan: m.Planned,
        exported: dict[tuple[int, int], int],
        seq: int,
        checksums: bool,
        compare: bool,
    ) -> None:
        """The descriptors that the worker's plan names, as many with a frame as go."""
        frames: list[tuple[int, Any]] = []
        for source in plan.sources:
            segments = arrays.u64s(source.segments, "segments")
            for begin in range(0, segments.size, MAX_DESCRIPTORS):
                frames.append((source.rank, segments[begin : begin + MAX_DESCRIPTORS]))
        for number, (rank, segments) in enumerate(frames):
            frame = m.Sources(
                seq=seq,
                epoch=self.desk.epoch,
                rank=rank,
                segment_bytes=self.manifests[rank].segment_bytes,
                segments=arrays.binary_u64(segments),
                compare=compare,
                checksums=checksums,
                last=number == len(frames) - 1,
            )
            worker.frames.send(frame, [exported[rank, int(segment)] for segment in segments])

    def _check(self, sums: dict[int, Any], answers: list[m.Summed]) -> None:
        """Each engine holds every tensor a whole number of times; random weights make equal sums no accident."""
        import numpy as np

        held = [arrays.u64s(found, "checksums") for _, found in sorted(sums.items())]
        # Partitions add up to the whole; replicas are the same, and each is the whole.
        whole: Any = np.sum(held, axis=0, dtype=np.uint64) if self.stage == 3 else held[0]
        sizes = np.array([int(np.prod(shape)) for shape in self.manifests[0].shapes], dtype=np.uint64)
        wrong = 0 if whole.any() and (self.stage == 3 or all(np.array_equal(one, whole) for one in held)) else 1
        tp = self.desk.job.tp
        for first in range(0, len(answers), tp):
            covered: Any = sum(
                arrays.u64s(plan.covered_elements, "coveredElements") for plan in self.plans[first : first + tp]
            )
            found: Any = sum(arrays.u64s(answer.checksums, "checksums") for answer in answers[first : first + tp])
            wrong += int((found != covered // sizes * whole).sum())
        if wrong:
            raise BatonError(
                "WEIGHTS_DIFFER",
                "The engines do not hold what the ranks hold.",
                expected="equal checksums of every tensor",
                found=f"{wrong} of {len(sizes)} tensors differ, summed over {self.desk.job.engines} engines",
                action="Please report this.",
            )

    def close(self) -> None:
        for child in self.children:
            self.desk.children.remove(child)
            child.kill()
            child.wait()


def _answers(desk: Desk, kind: type[T]) -> list[T]:
    """A frame of each worker, by GPU; or an engine's failure when that comes instead."""
    ends = time.monotonic() + ANSWER_SECONDS
    found: dict[int, T] = {}
    while len(found) < len(desk.workers):
        waiting = [worker.frames for gpu, worker in enumerate(desk.workers) if gpu not in found]
        ready = [frames for frames in waiting if frames.buffered]
        asked = [*waiting, *(engine.frames for engine in desk.engines)]
        ready += select.select(asked, [], [], 0.0 if ready else 1.0)[0]
        for gpu, worker in enumerate(desk.workers):
            if worker.frames in ready:
                found[gpu] = worker.expect(kind)[0]
        for engine in desk.engines:
            if engine.frames in ready:
                engine.receive(1.0)  # nothing but a failure can come here, and it raises
        if time.monotonic() > ends:
            raise BatonError(
                "DEADLINE",
                "A worker did not answer.",
                expected=f"{kind.__name__} of {len(desk.workers)} workers within {ANSWER_SECONDS:g} s",
                found=f"{len(found)}",
                action="Look at the log of this part.",
            )
    return [found[gpu] for gpu in range(len(desk.workers))]
