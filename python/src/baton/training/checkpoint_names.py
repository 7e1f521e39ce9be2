"""Under which names, and in which parts, an engine's load_weights knows the parameters: as checkpoints have them.

transformers 5 keeps the experts of a mixture in two tensors a layer, where checkpoints (and vLLM) have one for each
expert. How a model is written to a checkpoint is asked of transformers itself, with tensors of row numbers in place of
the weights: what comes out says which rows of which parameter each tensor of a checkpoint is.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Part:
    """A tensor of a checkpoint: elements [first, first + elements) of a parameter, in the shape given."""

    name: str
    first: int
    elements: int
    shape: tuple[int, ...]


#: By model: asked before every handoff, and it does not change.
_known: weakref.WeakKeyDictionary[Any, tuple[Mapping[str, Sequence[int]], dict[str, list[Part]]]] = (
    weakref.WeakKeyDictionary()
)


def checkpoint_parts(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[Part]]:
    """The parts of each parameter of a transformers model, by the parameter's name; in order, and together all of it.

    `shapes`: of the parameters as a whole, by name. A parameter that a checkpoint does not have as rows one after the
    other (a transposed one, say) stays one part under its own name.
    """
    known = _known.get(model)
    if known is None or known[0] != shapes:
        known = _known[model] = (dict(shapes), _ask(model, shapes))
    return known[1]


def _ask(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[Part]]:
    whole = {name: [Part(name, 0, math.prod(shape), tuple(shape))] for name, shape in shapes.items()}
    written = _written(model, shapes)
    if written is None:
        return whole
    begins, rows = {}, 0
    for name, shape in shapes.items():
        begins[name] = rows
        rows += math.prod(shape[:-1])
    names = list(shapes)
    starts = torch.tensor([begins[name] for name in names], dtype=torch.int64)
    found: dict[str, list[Part]] = {name: [] for name in shapes}
    for name, numbers in written.items():
        part = _part(name, numbers, names, starts, begins, shapes)
        if part is not None:
            found[part[0]].append(part[1])
    return {name: _in_order(parts, shapes[name]) or whole[name] for name, parts in found.items()}


def _written(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor] | None:
    """What a checkpoint would have of row numbers; None where transformers writes parameters as they are."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4
        return None
    if not hasattr(model, "config"):
        return None
    probes: dict[str, torch.Tensor] = {}
    rows = 0
    for name, shape in shapes.items():
        count = math.prod(shape[:-1])
        # One column: what is done to the last dimension, if anything, shows in the shape.
        probes[name] = torch.arange(rows, rows + count).view(*shape[:-1], 1)
        rows += count
    written = revert_weight_conversion(model, dict(probes))
    return None if all(written.get(name) is probe for name, probe in probes.items()) else written


def _part(
    name: str,
    numbers: torch.Tensor,
    names: Sequence[str],
    starts: torch.Tensor,
    begins: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
) -> tuple[str, Part] | None:
    """The parameter and its part that this tensor of row numbers is; None when it is not one row after the other."""
    flat = numbers.reshape(-1)
    if flat.numel() == 0 or numbers.shape[-1:] != (1,):
        return None
    first = int(flat[0])
    if not torch.equal(flat, torch.arange(first, first + flat.numel())):
        return None
    parameter = names[int(torch.searchsorted(starts, first, right=True)) - 1]
    last = int(shapes[parameter][-1]) if shapes[parameter] else 1
    shape = (*(int(size) for size in numbers.shape[:-1]), last)
    return parameter, Part(name, (first - begins[parameter]) * last, flat.numel() * last, shape)


def _in_order(parts: list[Part], shape: Sequence[int]) -> list[Part]:
    """The parts when together they are the whole parameter, else none."""
    ordered = sorted(parts, key=lambda part: part.first)
    end = 0
    for part in ordered:
        if part.first != end:
            return []
        end += part.elements
    return ordered if end == math.prod(shape) else []
