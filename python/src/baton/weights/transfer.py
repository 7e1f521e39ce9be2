"""One sync of one worker: map the ranks' segments, copy, compare, let go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton import native
from baton.weights.manifest import Ints
from baton.weights.plan import Pieces, Plan, whole_tensors
from baton.weights.recorder import DTYPES, Loads


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
    """Whole tensors of the trainer, one at a time, put together from mapped pieces."""

    def __init__(self, pieces: Pieces, bases: npt.NDArray[np.uint64], ordinal: int, device: torch.device) -> None:
        self.pieces = pieces
        self._bases = bases
        self._ordinal = ordinal
        self._device = device

    def tensors(self, report: Report) -> Iterator[tuple[str, Tensor]]:
        for index in range(len(self.pieces.tensors)):
            yield self.pieces.tensors[index].name, self.one(index, report)

    def one(self, index: int, report: Report) -> Tensor:
        spec = self.pieces.tensors[index]
        tensor = torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=self._device)
        if spec.elements:
            runs = whole_tensors(self.pieces, [(index, tensor.data_ptr())])
            plan = native.CopyPlan(self._ordinal, runs)
            try:
                report.add(plan.execute(self._bases))
            finally:
                plan.close()
        return tensor


def checksum_item(address: int, elements: int, element_bytes: int, group: int) -> tuple[int, int, int, int, int]:
    """A whole tensor as a baton_checksum_item."""
    return (address, 0, elements, element_bytes, group)


def differing_parameters(model: Loads, tensors: Iterator[tuple[str, Tensor]]) -> list[str]:
    """Names of the parameters that the engine's own `load_weights` would have filled otherwise, bit by bit.

    `load_weights` runs on scratch memory of the same size, which begins as a pattern of its own: what it leaves
    alone counts as a difference.
    """
    parameters = dict(model.named_parameters())
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = _patterned(own[name])
        with torch.no_grad():
            model.load_weights(tensors)
        return [name for name, parameter in parameters.items() if not _same_bits(parameter.data, own[name])]
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _patterned(like: Tensor) -> Tensor:
    """Memory as large as `like` in which no byte is the same as in `like`."""
    return _bits(like).bitwise_not().view(like.dtype).view(like.shape)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


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
    _flat = tensor.detach().view(-1).view(torch.uint8)
    _flat[:1] = _flat[:1] ^ 1
