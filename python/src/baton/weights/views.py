"""Strided views as rows of contiguous elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from baton.weights.dtypes import ELEMENT_BYTES
from baton.weights.manifest import Ints
from baton.weights.recorder import Copy, Recording


def width_of(recording: Recording, copy: Copy) -> int:
    """Bytes of an element where it is copied to."""
    return ELEMENT_BYTES[recording.tensors[copy.source].dtype] >> copy.rounded


def rows_of_copy(copy: Copy, width: int) -> tuple[Ints, int, Ints]:
    """Starts (elements of the source), elements of each row, addresses. `width`: bytes of an element there."""
    dims = _collapse(copy.shape, copy.source_strides, copy.strides)
    elements = 1
    if dims and dims[-1][1] == 1 and dims[-1][2] == 1:
        elements = dims.pop()[0]
    start = np.full(1, copy.offset, dtype=np.int64)
    address = np.full(1, copy.address, dtype=np.int64)
    for size, source_stride, stride in dims:
        steps = np.arange(size, dtype=np.int64)
        start = (start[:, None] + steps * source_stride).ravel()
        address = (address[:, None] + steps * (stride * width)).ravel()
    return start, elements, address


def extents_of(view: Tensor) -> tuple[Ints, Ints]:
    """Begin and end addresses of the contiguous parts of a view."""
    return extents(tuple(view.shape), tuple(view.stride()), view.data_ptr(), view.element_size())


def extents(shape: tuple[int, ...], strides: tuple[int, ...], address: int, width: int) -> tuple[Ints, Ints]:
    """The same of a view with elements of `width` bytes; strides in elements."""
    _, elements, begin = rows_of_copy(Copy(0, 0, 0, shape, strides, address, strides), width)
    return begin, begin + elements * width


def _collapse(
    shape: Sequence[int], source_strides: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(size, source stride, stride) with neighbouring dimensions joined where both sides allow it."""
    dims: list[tuple[int, int, int]] = []
    for size, source, target in zip(shape, source_strides, strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == source * size and dims[-1][2] == target * size:
            dims[-1] = (dims[-1][0] * size, source, target)
        else:
            dims.append((size, source, target))
    return dims
