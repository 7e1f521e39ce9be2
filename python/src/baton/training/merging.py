"""The weights that an engine gets of a policy with LoRA adapters: W + scale * B A, made anew for each handoff.

The sum is formed in fp32 from the base and rounded once, into memory of its own: the base is never written, so nothing
drifts however many handoffs there are (adding the product to the base and taking it away again would). Under ZeRO-3
each rank merges only the part of a weight that it holds, for which the small factors are gathered, not the base.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from baton import faults
from baton.training.adapters import Weight, check_active, engine_weights
from baton.training.held import held, span

#: Elements of a weight that are merged at a time; in fp32, and twice. Bounds what a merge takes beside its result.
_CHUNK_ELEMENTS = 1 << 24
#: Layers whose factors are gathered in one collective.
_GATHERED_LAYERS = 32
#: The copies and checksums like addresses that are multiples of this.
_ALIGNMENT_BYTES = 512


class MergedWeights:
    """The merged weights of one rank, in one buffer: for each adapted weight the elements that this rank holds."""

    def __init__(self, weights: Sequence[Weight]) -> None:
        """`weights`: those with adapters. Allocates: inside of the training memory, so that engines can map it."""
        self._weights = list(weights)
        sizes = [span(weight.parameter)[1] for weight in self._weights]
        dtypes = {weight.parameter.dtype for weight in self._weights}
        device = held(self._weights[0].parameter).device
        self._views: dict[int, torch.Tensor] = {}
        #: One for each dtype, which in practice means one.
        self.buffers: list[torch.Tensor] = []
        for dtype in sorted(dtypes, key=str):
            unit = _ALIGNMENT_BYTES // dtype.itemsize
            mine = [
                (weight, size)
                for weight, size in zip(self._weights, sizes, strict=True)
                if weight.parameter.dtype is dtype
            ]
            places = [0]
            for _, size in mine:
                places.append(places[-1] + -(-size // unit) * unit)
            buffer = torch.zeros(max(places[-1], 1), dtype=dtype, device=device)
            self.buffers.append(buffer)
            for (weight, size), place in zip(mine, places, strict=False):
                self._views[id(weight.parameter)] = buffer[place : place + size]

    @classmethod
    def of(cls, module: Any) -> MergedWeights | None:
        """None when the module has no adapters. Raises BatonError UNSUPPORTED_ADAPTER."""
        adapted = [weight for weight in engine_weights(module) if weight.layer is not None]
        return cls(adapted) if adapted else None

    def view(self, parameter: Any) -> torch.Tensor | None:
        """The merged elements [held by this rank] of an adapted weight; None for any other."""
        return self._views.get(id(parameter))

    @property
    def bases(self) -> set[int]:
        """Storages of the weights that the merged ones stand for: the engine does not look at those."""
        return {held(weight.parameter).untyped_storage()._cdata for weight in self._weights}

    def merge(self) -> None:
        """Fills the buffer from the base and the adapters as they are now. Collective under ZeRO-3.

        Raises BatonError ADAPTER_OFF.
        """
        unmerged = faults.hit("rank.merge.skip") is not None
        for begin in range(0, len(self._weights), _GATHERED_LAYERS):
            part = self._weights[begin : begin + _GATHERED_LAYERS]
            factors = [factor for weight in part for pair in _factors(weight.layer) for factor in pair[:2]]
            with torch.no_grad(), _gathered(factors):
                for weight in part:
                    self._merge_one(weight, unmerged)

    def _merge_one(self, weight: Weight, unmerged: bool) -> None:
        check_active(weight.layer)
        first, count = span(weight.parameter)
        if count == 0:
            return
        columns = int(getattr(weight.parameter, "ds_shape", weight.parameter.shape)[1])
        base = held(weight.parameter).view(-1)[:count]
        merged = self._views[id(weight.parameter)]
        step = max(1, _CHUNK_ELEMENTS // columns)
        for row in range(first // columns, -(-(first + count) // columns), step):
            # Elements [begin, end) of the whole weight: these rows, as far as this rank holds them.
            begin, end = max(first, row * columns), min(first + count, (row + step) * columns)
            value = base[begin - first : end - first].to(torch.float32, copy=True)  # never the base itself
            for a, b, scale in () if unmerged else _factors(weight.layer):
                rows = b[row : -(-end // columns)].float() @ a.float()
                value += (rows * scale).view(-1)[begin - row * columns : end - row * columns]
            merged[begin - first : end - first] = value.to(merged.dtype)


def _factors(layer: Any) -> Iterator[tuple[Any, Any, float]]:
    """(A [rank, in], B [out, rank], scale) of each active adapter."""
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            yield layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter])


@contextmanager
def _gathered(parameters: list[Any]) -> Generator[None]:
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_tensor")]
    if not partitioned:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters(partitioned):
        yield
