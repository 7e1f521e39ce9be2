"""The worker's side of the weight sync, as a mixin with names that collide with nothing in an engine's worker.

An engine's worker inherits `Receiver` (vLLM: as its worker extension class) and implements `baton_host`. The engine
process calls the `baton_…` methods on all workers of its group; what they need comes over each worker's own
connection to the controller, descriptors included.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from baton import faults, native
from baton.connection import Connection, unexpected
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import FromController, Planned, PlannedSource, RankManifest, Sources, Summed, Synced
from baton.weights import plan as planning
from baton.weights.manifest import RankPieces, TensorSpec, sources_for
from baton.weights.recorder import Loads, Recording, record
from baton.weights.transfer import (
    Assembler,
    Mapped,
    Report,
    Source,
    back_to_first,
    differing_parameters,
    flip_one_bit,
)

_Message = TypeVar("_Message", RankManifest, Sources)


@dataclass(frozen=True)
class Host:
    """What the receiver needs to know of the worker it lives in."""

    model: Loads
    #: Where scratch tensors are made.
    torch_device: torch.device
    #: The device's number in this process (for the driver) and on the node.
    ordinal: int
    gpu: int
    engine: int
    rank: int
    #: Whether weights may be copied; else the engine's own load_weights is used at every sync.
    by_copies: bool = True


@dataclass
class _State:
    connection: Connection | None = None
    #: Frames that came while nobody asked for them, with their descriptors.
    inbox: deque[tuple[FromController, list[int]]] = field(default_factory=deque)
    recording: Recording | None = None
    plan: planning.Plan | None = None
    copies: native.CopyPlan | None = None
    #: Sums up the weights of the last sync, while its engine goes on.
    summing: threading.Thread | None = None
    #: A fault on purpose keeps the first weights here.
    first: list[torch.Tensor] | None = None


class Receiver:
    """Mixin. Every method answers with MessagePack values. vLLM refuses an extension with a name that its worker has
    too, hence the prefix of the private ones."""

    def baton_host(self) -> Host:
        raise NotImplementedError

    @property
    def _baton(self) -> _State:
        # Made on first use: an engine's worker class may not call the __init__ of a mixin.
        state = self.__dict__.get("_baton_state")
        if state is None:
            state = self.__dict__["_baton_state"] = _State()
        return state

    def baton_connect(self) -> int:
        """Opens this worker's own connection to the controller. Returns the process id."""
        host = self.baton_host()
        self._baton.connection = Connection.open("worker", host.rank, gpu=host.gpu, engine=host.engine)
        native.load_kernels(host.ordinal)
        return os.getpid()

    def baton_fileno(self) -> int | None:
        """For a worker that waits for its engine's commands: call `baton_poll` when this is readable."""
        connection = self._baton.connection
        return None if connection is None else connection.fileno()

    def baton_poll(self) -> None:
        """Answers pings and keeps frames that arrived early. Raises BatonError when the controller is gone."""
        while True:
            try:
                self._baton.inbox.append(self._baton_connection().receive(0.0))
            except BatonError as error:
                if error.code == "DEADLINE":
                    return
                raise

    def baton_record(self, tensors: Sequence[Sequence[Any]]) -> str | None:
        """Watches `load_weights` with tensors of these [name, shape, dtype]. Answers why it cannot be repeated as
        copies, or None. The weights must be awake; what they hold afterwards is undefined."""
        return self._baton_record(
            tuple(TensorSpec(name, tuple(shape), dtype) for name, shape, dtype in tensors)
        ).obstacle

    def baton_plan(self, seq: int) -> None:
        """Reads the ranks' manifests, makes the copy plan and answers `planned` to the controller."""
        host, state = self.baton_host(), self._baton
        ranks: list[RankPieces] = []
        while True:
            message, _ = self._baton_expect(RankManifest, seq, 0)
            ranks.append(RankPieces.of(message.rank, message.gpu, message.manifest))
            if message.last:
                break
        sources = sources_for(host.gpu, ranks)
        recording = state.recording
        if recording is None or recording.tensors != sources[0].tensors:
            recording = self._baton_record(sources[0].tensors)
        plan = planning.join(recording, sources)
        if state.copies is not None:
            state.copies.close()
        state.plan = plan
        state.copies = native.CopyPlan(host.ordinal, plan.runs) if plan.fallback is None else None
        if plan.fallback is not None:
            print(
                f"baton: engine {host.engine} worker {host.rank} "
                f"uses its own load_weights at every sync: {plan.fallback}",
                flush=True,
            )
        items = plan.checksum_items()
        tensors = plan.pieces.tensors
        self._baton_connection().send(
            Planned(
                seq=seq,
                fallback=plan.fallback,
                runs=len(plan.runs),
                copy_bytes=plan.copy_bytes,
                sources=[
                    PlannedSource(rank=rank.rank, segments=arrays.binary_u64(segments), copy_bytes=copied)
                    for rank, segments, copied in zip(
                        plan.pieces.ranks, plan.pieces.segments(), plan.source_bytes(), strict=True
                    )
                ],
                covered_elements=arrays.binary_u64(planning.covered_elements(items, len(tensors))),
                coverage=arrays.binary_u64(native.checksum(host.ordinal, items, len(tensors), indices_only=True)),
                rounded=arrays.binary_u32(plan.rounded_tensors()),
            )
        )

    def baton_sync(self, seq: int) -> int:
        """Pulls the weights from the ranks' mapped memory and answers `synced`, all mappings closed; then `summed`,
        if sums were asked for, from a thread of its own: the GPU adds up while the cache is mapped. Returns the epoch
        that the weights have now."""
        self.baton_settle()
        host, plan = self.baton_host(), self._baton.plan
        if plan is None:
            raise BatonError(
                "NO_PLAN",
                "A worker was asked to sync before it had a copy plan.",
                expected="plan, then sync",
                found="sync",
                action="Please report this.",
            )
        sources, last = self._baton_sources(seq)
        report, compared = Report(), None
        skip = self._baton_fault("worker.sync.skip-copies")
        sums: native.U64s | None = None
        with _Closing(sources), Mapped(plan, host.ordinal, sources, report) as mapped:
            _close(sources)
            assembler = Assembler(plan.pieces, mapped.bases, host.ordinal, host.torch_device)
            if plan.fallback is not None:
                sums = self._baton_load(assembler, report, skip)
            elif not skip:
                self._baton_copy(plan, mapped, report)
            if self._baton_fault("worker.sync.first-weights"):
                self._baton.first = back_to_first(host.model.named_parameters(), self._baton.first)
            if self._baton_fault("worker.sync.flip-bit"):
                flip_one_bit(next(iter(dict(host.model.named_parameters()).values())))
            if plan.fallback is None and last.compare:
                # Of what was copied, before the comparison loads the weights anew.
                sums = self._baton_sums(plan) if last.checksums else None
                compared = differing_parameters(host.model, assembler.tensors(Report()), host.ordinal)
        if plan.fallback is not None or last.compare:
            self.baton_free_scratch()
        epoch = last.epoch - 1 if self._baton_fault("worker.sync.stale-epoch") else last.epoch
        self._baton_connection().send(
            Synced(
                seq=seq,
                epoch=epoch,
                copied_bytes=report.copied_bytes,
                runs=report.runs,
                map_seconds=report.map_seconds,
                copy_seconds=report.copy_seconds,
                unmap_seconds=report.unmap_seconds,
                simulated_seconds=report.simulated_seconds,
                compared=compared,
            )
        )
        if last.checksums:
            self._baton_sum(plan, seq, sums)
        return epoch

    def baton_settle(self) -> None:
        """Waits until nothing reads the weights any more, before they change or go."""
        summing, self._baton.summing = self._baton.summing, None
        if summing is not None:
            summing.join()

    def baton_free_scratch(self) -> None:
        """Gives back what whole tensors took that a sync made for a while. For workers that keep such memory."""

    def _baton_sum(self, plan: planning.Plan, seq: int, known: native.U64s | None) -> None:
        """Answers `summed`; the weights are summed up now, in the background, where that is not `known`."""
        connection, began = self._baton_connection(), time.monotonic()

        def answer(sums: native.U64s) -> None:
            seconds = time.monotonic() - began
            connection.send(Summed(seq=seq, checksums=arrays.binary_u64(sums), seconds=seconds))

        def sum_up() -> None:
            try:
                self._baton_late()
                answer(self._baton_sums(plan))
            except BaseException as error:
                if not isinstance(error, BatonError):
                    traceback.print_exc()
                connection.fail(error, "Summing up the weights of a sync")

        if known is not None:
            answer(known)
            return
        summing = threading.Thread(target=sum_up, name="baton-sums", daemon=True)
        summing.start()
        self._baton.summing = summing

    def _baton_record(self, tensors: tuple[TensorSpec, ...]) -> Recording:
        self.baton_settle()
        host = self.baton_host()
        recording = record(host.model, tensors, host.torch_device)
        if not host.by_copies:
            recording.obstacle = recording.obstacle or "engine.sync asks for it"
        self._baton.recording = recording
        return recording

    def _baton_sums(self, plan: planning.Plan) -> native.U64s:
        """By tensor, of what this worker holds."""
        return native.checksum(self.baton_host().ordinal, plan.items, len(plan.pieces.tensors))

    def _baton_copy(self, plan: planning.Plan, mapped: Mapped, report: Report) -> None:
        assert self._baton.copies is not None
        with torch.no_grad():
            for fill in plan.fills:
                fill.apply()
        report.add(self._baton.copies.execute(mapped.bases))

    def _baton_load(self, assembler: Assembler, report: Report, skip: bool) -> Any:
        """The engine's own `load_weights` over whole tensors; returns the checksums of what it was given."""
        host, pieces = self.baton_host(), assembler.pieces
        sums = np.zeros(len(pieces.tensors), dtype=np.uint64)

        def given() -> Any:
            for some in assembler.some(report):
                items = [
                    (tensor.data_ptr(), 0, tensor.numel(), tensor.element_size(), native.PLAIN, k)
                    for k, (_, tensor) in enumerate(some)
                ]
                numbers = [index for index, _ in some]
                sums[numbers] = native.checksum(host.ordinal, np.array(items, native.CHECKSUM_ITEM), len(items))
                while some:
                    index, tensor = some.popleft()
                    yield pieces.tensors[index].name, tensor

        began = time.monotonic()
        if skip:
            for _ in given():
                pass
        else:
            with torch.no_grad():
                host.model.load_weights(given())
        report.copy_seconds = time.monotonic() - began
        return sums

    def _baton_sources(self, seq: int) -> tuple[dict[int, Source], Sources]:
        """What each rank gives for this sync, and the last of the frames."""
        plan = self._baton.plan
        assert plan is not None
        frames: list[Sources] = []
        numbers: dict[int, list[int]] = {}
        descriptors: dict[int, list[int]] = {}
        try:
            while not frames or not frames[-1].last:
                message, found = self._baton_expect(Sources, seq, None)
                frames.append(message)
                descriptors.setdefault(message.rank, []).extend(found)
                numbers.setdefault(message.rank, []).extend(arrays.u64s(message.segments, "segments").tolist())
            for rank, wanted in zip(plan.pieces.ranks, plan.pieces.segments(), strict=True):
                given = numbers.get(rank.rank, [])
                if set(given) != set(wanted.tolist()) or len(given) != len(descriptors[rank.rank]):
                    raise BatonError(
                        "SOURCES_MISMATCH",
                        f"The segments of rank {rank.rank} for a sync are not those of the plan.",
                        expected=f"{wanted.size} segments, a descriptor each",
                        found=f"{len(given)} segments, {len(descriptors.get(rank.rank, []))} descriptors",
                        action="Please report this.",
                    )
        except BaseException:
            for found in descriptors.values():
                _close_all(found)
            raise
        segment_bytes = {frame.rank: frame.segment_bytes for frame in frames}
        return {
            rank: Source(segment_bytes[rank], np.array(numbers[rank], dtype=np.int64), descriptors[rank])
            for rank in numbers
        }, frames[-1]

    def _baton_connection(self) -> Connection:
        connection = self._baton.connection
        if connection is None:
            raise BatonError(
                "NOT_CONNECTED",
                "A worker was used before it was connected to the controller.",
                expected="baton_connect first",
                found="another call",
                action="Please report this.",
            )
        return connection

    def _baton_expect(self, kind: type[_Message], seq: int, descriptors: int | None) -> tuple[_Message, list[int]]:
        message, found = self._baton.inbox.popleft() if self._baton.inbox else self._baton_connection().receive()
        if not isinstance(message, kind) or message.seq != seq or descriptors not in (None, len(found)):
            _close_all(found)
            raise unexpected(message, (kind,))
        return message, found

    def _baton_fault(self, point: str) -> bool:
        """A fault whose argument names another tensor-parallel rank is not for this worker."""
        fault = faults.hit(point)
        return fault is not None and fault.argument in ("", str(self.baton_host().rank))

    def _baton_late(self) -> None:
        """A fault on purpose: SECONDS of every worker, or RANK/SECONDS of one."""
        fault = faults.hit("worker.sums.late")
        rank, _, seconds = fault.argument.rpartition("/") if fault else ("", "", "")
        if seconds and rank in ("", str(self.baton_host().rank)):
            time.sleep(float(seconds))


class _Closing:
    """Closes the descriptors of `sources` when mapping fails half-way."""

    def __init__(self, sources: dict[int, Source]) -> None:
        self._sources = sources

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        _close(self._sources)


def _close(sources: dict[int, Source]) -> None:
    for source in sources.values():
        _close_all(source.descriptors)


def _close_all(descriptors: Any) -> None:
    while descriptors:
        os.close(descriptors.pop())
