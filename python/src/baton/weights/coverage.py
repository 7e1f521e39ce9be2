"""Whether `load_weights` writes every byte of every parameter, in whatever way."""

from __future__ import annotations

import numpy as np

from baton.errors import BatonError
from baton.weights.manifest import Ints
from baton.weights.names import nearest
from baton.weights.recorder import Recording
from baton.weights.views import extents, extents_of, width_of


def check_covered(recording: Recording) -> None:
    """Raises BatonError WEIGHTS_NOT_COVERED: neither a copy plan nor the engine's own load_weights fills some byte, so
    that what it holds after waking is anything."""
    begin, end = _written(recording)
    # Joined to ranges without a hole, since a parameter may be written in a hundred thousand rows. Nothing lies at 0.
    begin, end = np.concatenate(([0], begin)), np.concatenate(([0], end))
    sort = np.argsort(begin, kind="stable")
    begin, reach = begin[sort], np.maximum.accumulate(end[sort])
    holes = np.flatnonzero(begin[1:] > reach[:-1])
    first, last = begin[np.append(0, holes + 1)], reach[np.append(holes, -1)]
    for parameter in recording.parameters:
        at, stop = parameter.address, parameter.address + parameter.bytes
        written = max(at, int(last[np.searchsorted(first, at, side="right") - 1]))
        if written < stop:
            near = nearest(parameter.name, (tensor.name for tensor in recording.tensors), "the trainer's names")
            raise BatonError(
                "WEIGHTS_NOT_COVERED",
                f"No tensor of the trainer fills the engine's parameter {parameter.name!r}.",
                expected=f"all {parameter.bytes} bytes written by load_weights",
                found=f"nothing at byte {written - parameter.address}; {near}",
                action="Give engine and trainer the same model folder (tied or untied embeddings, biases).",
            )


def _written(recording: Recording) -> tuple[Ints, Ints]:
    """Begin and end addresses."""
    views = [fill.target for fill in recording.fills] + recording.others
    parts = [extents_of(view) for view in views]
    parts += [extents(c.shape, c.strides, c.address, width_of(recording, c)) for c in recording.copies]
    nothing = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([nothing, *(begin for begin, _ in parts)]),
        np.concatenate([nothing, *(end for _, end in parts)]),
    )
