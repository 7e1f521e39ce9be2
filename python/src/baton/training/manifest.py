"""The manifest of a rank: which pieces of the policy's weights lie where in its pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from baton import native
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import Manifest
from baton.training.adapters import engine_weights, plain_model
from baton.training.checkpoint_names import Part, checkpoint_parts
from baton.training.deepspeed_state import stage_of
from baton.training.held import held, span
from baton.training.memory import TrainingMemory
from baton.weights.checksums import Checksums

Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + elements) of a tensor, at `offset_bytes` from the pool's base."""

    tensor: int
    start: int
    elements: int
    offset_bytes: int


@dataclass(frozen=True)
class Weights:
    """The policy's tensors by the names of a Hugging Face checkpoint, each once, and this rank's pieces of them.

    `pieces` are what it holds itself, `gathered` what it has of the ranks of other nodes.
    """

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    pieces: list[Piece]
    gathered: list[Piece]
    element_bytes: list[int]

    @classmethod
    def of(cls, memory: TrainingMemory) -> Weights:
        """Reads them off the engine. Raises BatonError UNSUPPORTED_WEIGHTS."""
        weights = list(engine_weights(memory.engine.module))
        if not weights:
            raise _unsupported("the module has no parameters", "a model")
        shapes = {each.name: tuple(getattr(each.parameter, "ds_shape", each.parameter.shape)) for each in weights}
        parts_of = checkpoint_parts(plain_model(memory.engine.module), shapes)
        tensors: list[Part] = []
        dtypes: list[str] = []
        pieces: list[Piece] = []
        gathered: list[Piece] = []
        element_bytes: list[int] = []
        for weight in weights:
            name, parameter = weight.name, weight.parameter
            dtype = _DTYPES.get(parameter.dtype)
            if dtype is None:
                raise _unsupported(f"{name} has dtype {parameter.dtype}", "float32, bfloat16 or float16")
            parts = parts_of[name]
            piece = _piece(len(tensors), name, parameter, memory)
            if piece is not None:
                pieces += split(piece, parts, parameter.element_size())
            for of in () if memory.peers is None else memory.peers.pieces(parameter):
                theirs = Piece(len(tensors), of.start, of.elements, of.address - memory.pool.base)
                gathered += split(theirs, parts, parameter.element_size())
            tensors += parts
            dtypes += [dtype] * len(parts)
            element_bytes += [parameter.element_size()] * len(parts)
        return cls(
            [part.name for part in tensors],
            dtypes,
            [list(part.shape) for part in tensors],
            pieces,
            gathered,
            element_bytes,
        )

    def to_wire(self, memory: TrainingMemory) -> Manifest:
        pieces = self.pieces + self.gathered
        return Manifest(
            zero_stage=stage_of(memory.engine),
            dtype=cast(Dtype, Counter(self.dtypes).most_common(1)[0][0]),
            segment_bytes=memory.pool.segment_bytes,
            names=self.names,
            dtypes=self.dtypes,
            shapes=self.shapes,
            piece_tensor=arrays.binary_u32([piece.tensor for piece in pieces]),
            piece_start=arrays.binary_u64([piece.start for piece in pieces]),
            piece_elements=arrays.binary_u64([piece.elements for piece in pieces]),
            piece_offset=arrays.binary_u64([piece.offset_bytes for piece in pieces]),
            state_bytes=memory.state_bytes(),
            arena_bytes=memory.arena_bytes_needed(),
        )

    def checksums(self, memory: TrainingMemory) -> Checksums:
        """Layout-invariant, one a tensor, over what this rank holds, and over what its peers hold.

        Each is summed where it is held, not where it was gathered. With other nodes collective over the peers.
        """
        items = np.zeros(len(self.pieces), dtype=native.CHECKSUM_ITEM)
        for item, piece in zip(items, self.pieces, strict=True):
            item["address"] = memory.pool.base + piece.offset_bytes
            item["first_element"] = piece.start
            item["elements"] = piece.elements
            item["element_bytes"] = self.element_bytes[piece.tensor]
            item["group"] = piece.tensor
        sums = Checksums.of(memory.device, items, self.dtypes)
        if memory.peers is None:
            return sums
        summed = memory.peers.summed(np.concatenate([sums.plain, sums.rounded]))
        return Checksums(summed[: len(self.names)], summed[len(self.names) :])


def _piece(index: int, name: str, parameter: Any, memory: TrainingMemory) -> Piece | None:
    memory_of = held(parameter)
    if not memory_of.is_contiguous():
        raise _unsupported(f"{name} is not contiguous", "contiguous weights")
    start, elements = span(parameter)
    if elements <= 0:
        return None
    merged = None if memory.merged is None else memory.merged.view(parameter)
    address = (memory_of if merged is None else merged).data_ptr()
    if not memory.pool.owns(address):
        raise _unsupported(f"{name} is not in the training memory", "every parameter in the pool")
    return Piece(index, start, elements, address - memory.pool.base)


def split(piece: Piece, parts: list[Part], element_bytes: int) -> Iterator[Piece]:
    """What a piece of a whole parameter is of the parameter's parts; the first of them is tensor `piece.tensor`."""
    for number, part in enumerate(parts):
        begin = max(piece.start, part.first)
        end = min(piece.start + piece.elements, part.first + part.elements)
        if begin < end:
            offset = piece.offset_bytes + (begin - piece.start) * element_bytes
            yield Piece(piece.tensor + number, begin - part.first, end - begin, offset)


def _unsupported(found: str, expected: str) -> BatonError:
    return BatonError(
        "UNSUPPORTED_WEIGHTS",
        f"The policy's weights cannot be given to an engine: {found}.",
        expected=expected,
        found=found,
        action="Change the model.",
    )
