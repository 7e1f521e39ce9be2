"""A controller for tests, on the product's own frames: real engine processes, real pools in processes of "ranks".

It does what the controller does in a handoff, one step at a time and in plain sight, and checks weight sums by the
rule of the contract: what the workers hold must be what the ranks hold, a whole number of times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from harness_ranks import Ranks
from harness_run import HERE, SECONDS, Client, EngineFailed, Run, T, alive, kill, start_time

from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol import messages as m

__all__ = [
    "HERE",
    "Client",
    "Engine",
    "EngineFailed",
    "Ranks",
    "Run",
    "Synced",
    "alive",
    "index_sum",
    "kill",
    "start_time",
]


@dataclass
class Synced:
    """One sync of one engine: every worker's answer, and the verdict on its sums."""

    workers: list[m.Synced]
    sums_agree: bool


class Engine:
    """One engine process and the steps of its part in a handoff."""

    def __init__(
        self,
        run: Run,
        model: str,
        *,
        tp: int,
        dtype: str,
        index: int = 0,
        faults: str = "",
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.run = run
        self.tp = tp
        config = {
            "kind": "small",
            "index": index,
            "model": model,
            "tensor_parallel": tp,
            "devices": [index * tp + rank for rank in range(tp)],
            "dtype": dtype,
            "max_model_length": 64,
            "max_sequences": 16,
        }
        variables = {"BATON_ENGINE": json.dumps(config | more), **(environment or {})}
        if faults:
            variables["BATON_FAULTS"] = faults
        self.process = run.spawn(["-m", "baton.engines"], **variables)
        self.index = index
        self.epoch = 0
        self.requests = 0
        self.client: Client
        self.ranks: Ranks
        self.workers: list[Client] = []
        self.ready: m.Ready
        self.plans: list[m.Planned] = []

    def connect(self) -> Engine:
        self.client = self.run.accept("engine", self.index)
        self.ready, _ = self._while_starting()
        return self

    def _while_starting(self) -> tuple[m.Ready, list[int]]:
        # The workers connect before the engine is ready, so their welcome cannot wait for it.
        for rank in range(self.tp):
            self.workers.append(self.run.accept("worker", rank, self.index))
        return self.client.expect(m.Ready)

    def wake(self, *tags: str) -> None:
        self.client.frames.send(m.Wake(seq=self.run.next_seq(), tags=list(tags)))  # pyright: ignore
        self.client.expect(m.Awake)

    def sleep(self, level: int = 2) -> m.Asleep:
        self.client.frames.send(m.Sleep(seq=self.run.next_seq(), level=level))
        return self.client.expect(m.Asleep)[0]

    def plan(self, ranks: Ranks) -> list[m.Planned]:
        seq = self.run.next_seq()
        for worker in self.workers:
            for rank, manifest in enumerate(ranks.manifests):
                last = rank == len(ranks.manifests) - 1
                worker.frames.send(m.RankManifest(seq=seq, rank=rank, gpu=rank, last=last, manifest=manifest))
        self.client.frames.send(m.Plan(seq=seq))
        self.plans = [self._answer(worker, m.Planned) for worker in self.workers]
        return self.plans

    def sync(
        self,
        ranks: Ranks,
        *,
        compare: bool = False,
        checksums: bool = True,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Synced:
        """Exports, forwards the descriptors, syncs, and judges the checksums (without them: that they agree).
        `meanwhile`: what the engine is asked for while its workers sum."""
        self.epoch += 1
        wanted: dict[int, set[int]] = {}
        for plan in self.plans:
            for source in plan.sources:
                wanted.setdefault(source.rank, set()).update(arrays.u64s(source.segments, "segments").tolist())
        exported: dict[int, tuple[list[int], list[int]]] = {}
        rank_sums: dict[int, np.ndarray] = {}
        rounded = np.unique(np.concatenate([arrays.u32s(plan.rounded, "rounded") for plan in self.plans]))
        for rank, segments in wanted.items():
            client = ranks.clients[rank]
            numbers = sorted(segments)
            client.frames.send(
                m.ExportSegments(seq=self.run.next_seq(), segments=arrays.binary_u64(numbers), checksums=checksums)
            )
            answer, descriptors = client.expect(m.Exported)
            exported[rank] = (numbers, descriptors)
            rank_sums[rank] = arrays.u64s(answer.checksums, "checksums").copy()
            if checksums and rounded.size:
                rank_sums[rank][rounded] = arrays.u64s(answer.rounded_checksums, "roundedChecksums")[rounded]
        seq = self.run.next_seq()
        for worker, plan in zip(self.workers, self.plans, strict=True):
            for number, source in enumerate(plan.sources):
                mine = arrays.u64s(source.segments, "segments").tolist()
                numbers, descriptors = exported[source.rank]
                worker.frames.send(
                    m.Sources(
                        seq=seq,
                        epoch=self.epoch,
                        rank=source.rank,
                        segment_bytes=ranks.manifests[source.rank].segment_bytes,
                        segments=arrays.binary_u64(mine),
                        compare=compare,
                        checksums=checksums,
                        last=number == len(plan.sources) - 1,
                    ),
                    [descriptors[numbers.index(segment)] for segment in mine],
                )
        for _, descriptors in exported.values():
            for descriptor in descriptors:
                os.close(descriptor)
        self.client.frames.send(m.Sync(seq=seq, epoch=self.epoch, compare=compare))
        workers = [self._answer(worker, m.Synced) for worker in self.workers]
        meanwhile()
        sums = [self._answer(worker, m.Summed) for worker in self.workers] if checksums else []
        return Synced(workers, not checksums or self._sums_agree(ranks, rank_sums, sums))

    def _sums_agree(self, ranks: Ranks, rank_sums: dict[int, np.ndarray], workers: list[m.Summed]) -> bool:
        sizes = np.array(ranks.sizes, dtype=np.uint64)
        whole = sum(rank_sums.values()) if ranks.stage == 3 else next(iter(rank_sums.values()))
        covered = sum(arrays.u64s(plan.covered_elements, "coveredElements") for plan in self.plans)
        coverage = sum(arrays.u64s(plan.coverage, "coverage") for plan in self.plans)
        times, rest = np.divmod(covered, sizes)
        indices = np.array([index_sum(int(size)) for size in sizes], dtype=np.uint64)
        held = sum(arrays.u64s(worker.checksums, "checksums") for worker in workers)
        return bool(
            np.all(rest == 0)
            and np.all(times >= 1)
            and np.array_equal(coverage, times * indices)
            and np.array_equal(held, times * whole)
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: Sequence[int] | int = 1,
        streams: Sequence[int] | None = None,
        seconds: float = SECONDS,
        **sampling: Any,
    ) -> list[list[tuple[list[int], np.ndarray, str]]]:
        """(tokens, logprobs, finish) by prompt and sample."""
        counts = [samples] * len(prompts) if isinstance(samples, int) else list(samples)
        self.ask(prompts, counts, streams, **sampling)
        while True:
            message, _ = self.client.frames.receive(seconds)
            if isinstance(message, m.Failed):
                raise EngineFailed(message.failure)
            if isinstance(message, m.Generated):
                break
            assert isinstance(message, m.Progress), message
        assert message.epoch == self.epoch
        lengths = arrays.u32s(message.lengths, "lengths")
        if not lengths.size:
            return [[] for _ in prompts]
        cuts = np.cumsum(lengths)[:-1]
        tokens = np.split(arrays.u32s(message.tokens, "tokens"), cuts)
        logprobs = np.split(arrays.f32s(message.logprobs, "logprobs"), cuts)
        flat = [
            ([int(t) for t in a], b, "length" if c else "stop")
            for a, b, c in zip(tokens, logprobs, message.finish, strict=True)
        ]
        ends = np.cumsum(counts).tolist()
        return [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def ask(
        self, prompts: Sequence[Sequence[int]], samples: Sequence[int], streams: Sequence[int] | None, **sampling: Any
    ) -> None:
        self.requests += 1
        defaults: dict[str, Any] = {
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "max_tokens": 8,
            "stop_token_ids": [],
            "seed": 1,
        }
        self.client.frames.send(
            m.Generate(
                request=self.requests,
                epoch=self.epoch,
                tokens=arrays.binary_u32([token for prompt in prompts for token in prompt]),
                lengths=arrays.binary_u32([len(prompt) for prompt in prompts]),
                sampling=m.Sampling(n=1, **(defaults | sampling)),
                samples=arrays.binary_u32(list(samples)),
                streams=arrays.binary_u32(list(streams if streams is not None else range(len(prompts)))),
            )
        )

    def shutdown(self) -> int:
        self.client.frames.send(m.Shutdown(failure=None))
        return self.process.wait(10)

    def worker_pids(self) -> list[int]:
        return [worker.hello.pid for worker in self.workers]

    def handoff(self, ranks: Ranks, *, compare: bool = False) -> Synced:
        """From asleep to ready for requests."""
        self.wake("weights")
        if not self.plans:
            self.plan(ranks)
        synced = self.sync(ranks, compare=compare)
        self.wake("kv_cache")
        return synced

    def _answer(self, worker: Client, kind: type[T]) -> T:
        """A worker's frame, or the engine's failure when that comes instead."""
        ends = time.monotonic() + SECONDS
        while True:
            try:
                return worker.expect(kind, 0.2)[0]
            except BatonError as error:
                if error.code not in ("DEADLINE", "CONNECTION_LOST") or time.monotonic() > ends:
                    raise
                lost = error.code == "CONNECTION_LOST"
            try:
                self.client.expect(type(None), 2.0 if lost else 0.001)  # only a failure can come here
            except BatonError as error:
                if error.code != "DEADLINE" or lost:
                    raise


@cache
def index_sum(elements: int) -> int:
    """The checksum over the indices 0 … elements-1 alone, from the definition."""
    total = 0
    with np.errstate(over="ignore"):
        for first in range(0, elements, 1 << 20):
            x = np.arange(first, min(first + (1 << 20), elements), dtype=np.uint32)
            x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
            x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
            total += x.size * 2**32 + int((x ^ (x >> 16)).sum(dtype=np.uint64))
    return total % 2**64
