"""Tensors laid out in memory as ranks hold them, and a plain way to run a copy plan on that memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from baton.native import ROUNDED
from baton.weights.manifest import RankPieces, TensorSpec
from baton.weights.plan import Plan

SEGMENT_BYTES = 4096


def specs_of(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
    )


def partition(tensors: Mapping[str, Tensor], world: int, stage: int) -> tuple[list[RankPieces], list[np.ndarray]]:
    """Pieces and memory of `world` ranks: equal parts of each tensor, rounded up (stage 3), or whole tensors.

    Pieces lie at odd multiples of the element size, as DeepSpeed's do.
    """
    specs = specs_of(tensors)
    ranks: list[RankPieces] = []
    memories: list[np.ndarray] = []
    for rank in range(world):
        data = bytearray()
        pieces: list[tuple[int, int, int, int]] = []
        for index, (spec, tensor) in enumerate(zip(specs, tensors.values(), strict=True)):
            part = -(-spec.elements // world) if stage == 3 else spec.elements
            begin = min(rank * part, spec.elements) if stage == 3 else 0
            end = min(begin + part, spec.elements)
            data += b"\xee" * tensor.element_size()
            if begin < end:
                pieces.append((index, begin, end - begin, len(data)))
                data += raw(tensor.reshape(-1)[begin:end])
        columns = np.array(pieces, dtype=np.int64).reshape(-1, 4).T
        ranks.append(RankPieces(rank, rank, stage, SEGMENT_BYTES, specs, *columns))
        memories.append(np.frombuffer(bytes(data), dtype=np.uint8).copy())
    return ranks, memories


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def execute(plan: Plan, memories: Sequence[np.ndarray]) -> None:
    """Byte by byte what the plan says, without libbaton."""
    for fill in plan.fills:
        fill.apply()
    for run in plan.runs:
        source = memories[run["slot"]]
        begin, length = int(run["src_offset"]), int(run["bytes"])
        read = 2 * length if run["conversion"] == ROUNDED else length
        assert begin + read <= source.size
        found = source[begin : begin + read]
        if run["conversion"] == ROUNDED:
            values = torch.from_numpy(np.frombuffer(found.tobytes(), dtype=np.float32).copy()).bfloat16()
            found = np.frombuffer(raw(values), dtype=np.uint8)
        ctypes.memmove(int(run["dst"]), found.ctypes.data, length)
