"""One sync of one worker: map the ranks' segments, copy, compare, let go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton import native
from baton.weights.dtypes import ELEMENT_BYTES
from baton.weights.manifest import Ints
from baton.weights.plan import Pieces, Plan, whole_tensors
from baton.weights.recorder import DTYPES, Loads

#: For whole tensors that an engine's own load_weights shall read: so many bytes, and no more than this part of the GPU.
SCRATCH_BYTES, SCRATCH_SHARE = 64 << 20, 1024


@dataclass(frozen=True)
class Source:
    """What one rank gives for one sync: numbered segments, and a descriptor for each."""

    segment_bytes: int
    segments: Ints
    descriptors: Sequence[int]


@dataclass
class Report:
    """Figures of one sync. `simulated_seconds` None: the device is real."""

    copied_bytes: int = 0
    runs: int = 0
    map_seconds: float = 0.0
    copy_seconds: float = 0.0
    unmap_seconds: float = 0.0
    simulated_seconds: float | None = None

    def add(self, copied: native.CopyReport) -> None:
        self.copied_bytes += copied.bytes
        self.runs += copied.runs
        self.copy_seconds += copied.total_ns / 1e9
        if copied.simulated_ns is not None:
            self.simulated_seconds = (self.simulated_seconds or 0.0) + copied.simulated_ns / 1e9


class Mapped:
    """The ranks' memory, readable while this is open."""

    def __init__(self, plan: Plan, ordinal: int, sources: Mapping[int, Source], report: Report) -> None:
        """`sources` by rank, one for each rank of the plan. Closes no descriptor."""
        self._report = report
        self._imports: list[native.Import] = []
        began = time.monotonic()
        try:
            for rank in plan.pieces.ranks:
                source = sources[rank.rank]
                self._imports.append(
                    native.Import(ordinal, source.segment_bytes, source.segments.tolist(), source.descriptors)
                )
        except BaseException:
            self.close()
            raise
        self.bases = np.array([each.base for each in self._imports], dtype=np.uint64)
        report.map_seconds = time.monotonic() - began

    def __enter__(self) -> Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        began = time.monotonic()
        while self._imports:
            self._imports.pop().close()
        self._report.unmap_seconds = time.monotonic() - began


class Assembler:
    """Whole tensors of the trainer, put together from mapped pieces: some at a time, as many as scratch memory is
    meant for, and at least one. Making a copy plan and waiting for it costs more than copying a small tensor does."""

    def __init__(self, pieces: Pieces, bases: npt.NDArray[np.uint64], ordinal: int, device: torch.device) -> None:
        self.pieces = pieces
        self._bases = bases
        self._ordinal = ordinal
        self._device = device

    def tensors(self, report: Report) -> Iterator[tuple[str, Tensor]]:
        for some in self.some(report):
            while some:
                index, tensor = some.popleft()
                yield self.pieces.tensors[index].name, tensor

    def some(self, report: Report) -> Iterator[deque[tuple[int, Tensor]]]:
        """Neighbours in the order of the plan's tensors, with their numbers. Whoever takes them out of the deque leaves
        no reference here."""
        most = min(SCRATCH_BYTES, native.device_memory(self._ordinal)[1] // SCRATCH_SHARE)
        indices: list[int] = []
        size = 0
        for index, spec in enumerate(self.pieces.tensors):
            more = spec.elements * ELEMENT_BYTES[spec.dtype]
            if indices and size + more > most:
                yield self._assemble(indices, report)
                indices, size = [], 0
            indices.append(index)
            size += more
        if indices:
            yield self._assemble(indices, report)

    def _assemble(self, indices: Sequence[int], report: Report) -> deque[tuple[int, Tensor]]:
        made: deque[tuple[int, Tensor]] = deque()
        for index in indices:
            spec = self.pieces.tensors[index]
            made.append((index, torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=self._device)))
        wanted = [(index, tensor.data_ptr()) for index, tensor in made if tensor.numel()]
        if wanted:
            plan = native.CopyPlan(self._ordinal, whole_tensors(self.pieces, wanted))
            try:
                report.add(plan.execute(self._bases))
            finally:
                plan.close()
        return made


def differing_parameters(model: Loads, tensors: Iterator[tuple[str, Tensor]], ordinal: int) -> list[str]:
    """Names of the parameters that the engine's own `load_weights` fills otherwise than they are, by checksum.

    `load_weights` runs on the parameters themselves, whose every bit is turned before: what it leaves alone counts as a
    difference. So besides `tensors` no memory is taken, and afterwards the parameters hold what `load_weights` gives.
    """
    names = [name for name, _ in model.named_parameters()]
    before = _sums(model, ordinal)
    # Tied parameters share their memory, which must be turned once.
    places = {parameter.data_ptr(): parameter for _, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in places.values():
            _bits(parameter).bitwise_not_()
        model.load_weights(tensors)
    after = _sums(model, ordinal)
    return [name for name, one, other in zip(names, before, after, strict=True) if one != other]


def _sums(model: Loads, ordinal: int) -> native.U64s:
    """A checksum a parameter."""
    parameters = [parameter for _, parameter in model.named_parameters()]
    items = [
        (parameter.data_ptr(), 0, parameter.numel(), parameter.element_size(), native.PLAIN, number)
        for number, parameter in enumerate(parameters)
    ]
    return native.checksum(ordinal, np.array(items, dtype=native.CHECKSUM_ITEM), len(items))


def _bits(tensor: Tensor) -> Tensor:
    """Its memory; no copy, or an error."""
    return tensor.detach().view(-1).view(torch.uint8)


def back_to_first(named: Iterable[tuple[str, Tensor]], first: list[Tensor] | None) -> list[Tensor]:
    """A fault on purpose: the first weights stay for ever. Returns them."""
    parameters = [parameter.detach() for _, parameter in named]
    if first is None:
        return [parameter.clone() for parameter in parameters]
    for parameter, kept in zip(parameters, first, strict=True):
        parameter.copy_(kept)
    return first


def flip_one_bit(tensor: Tensor) -> None:
    """A fault on purpose."""
    _bits(tensor)[:1] ^= 1
