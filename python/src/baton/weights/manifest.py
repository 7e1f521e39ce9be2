"""The ranks' manifests as arrays: which rank holds which elements of which tensor, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import Manifest

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the trainer. `dtype` as in torch, without the prefix."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class RankPieces:
    """What one rank holds. Starts and counts in elements, offsets in bytes from the base of its pool."""

    rank: int
    gpu: int
    zero_stage: int
    segment_bytes: int
    tensors: tuple[TensorSpec, ...]
    tensor: Ints
    start: Ints
    elements: Ints
    offset: Ints

    @classmethod
    def of(cls, rank: int, gpu: int, manifest: Manifest) -> RankPieces:
        """Raises BatonError BAD_MANIFEST when its arrays do not fit together."""
        pieces = [
            arrays.u32s(manifest.piece_tensor, "pieceTensor").astype(np.int64),
            arrays.u64s(manifest.piece_start, "pieceStart").astype(np.int64),
            arrays.u64s(manifest.piece_elements, "pieceElements").astype(np.int64),
            arrays.u64s(manifest.piece_offset, "pieceOffset").astype(np.int64),
        ]
        tensors = tuple(
            TensorSpec(name, tuple(shape), dtype)
            for name, shape, dtype in zip(manifest.names, manifest.shapes, manifest.dtypes, strict=False)
        )
        found = cls(rank, gpu, manifest.zero_stage, manifest.segment_bytes, tensors, *pieces)
        found._check(len(manifest.names), len(manifest.shapes), len(manifest.dtypes))
        return found

    def _check(self, names: int, shapes: int, dtypes: int) -> None:
        lengths = {len(array) for array in (self.tensor, self.start, self.elements, self.offset)}
        sizes = np.array([tensor.elements for tensor in self.tensors], dtype=np.int64)
        if not names == shapes == dtypes:
            self._refuse("one name, shape and dtype a tensor", f"{names}, {shapes} and {dtypes}")
        if len(lengths) != 1:
            self._refuse("piece arrays of one length", f"lengths {sorted(lengths)}")
        if self.tensor.size and int(self.tensor.max()) >= sizes.size:
            self._refuse(f"tensor numbers below {sizes.size}", str(int(self.tensor.max())))
        if np.any(self.start + self.elements > sizes[self.tensor]) or np.any(self.start < 0):
            self._refuse("pieces inside their tensors", "a piece that ends behind its tensor")
        if self.segment_bytes <= 0:
            self._refuse("a segment size", str(self.segment_bytes))

    def _refuse(self, expected: str, found: str) -> None:
        raise BatonError(
            "BAD_MANIFEST",
            f"The manifest of rank {self.rank} does not make sense.",
            expected=expected,
            found=found,
            action="Please report this.",
        )


def sources_for(gpu: int, ranks: Sequence[RankPieces]) -> list[RankPieces]:
    """The ranks that a worker on `gpu` pulls from: all of them when the parameters are partitioned (ZeRO-3), else
    the one on its own GPU. Raises BatonError MANIFESTS_DIFFER or NO_SOURCE.
    """
    if not ranks:
        raise _no_source(gpu, "no manifest at all")
    for other in ranks[1:]:
        if (other.zero_stage, other.tensors) != (ranks[0].zero_stage, ranks[0].tensors):
            raise BatonError(
                "MANIFESTS_DIFFER",
                f"Ranks {ranks[0].rank} and {other.rank} do not train the same model.",
                expected="the same names, shapes, dtypes and ZeRO stage in every manifest",
                found="a difference",
                action="Give every rank the same model and DeepSpeed configuration.",
            )
    if ranks[0].zero_stage == 3:
        return list(ranks)
    own = [rank for rank in ranks if rank.gpu == gpu]
    if not own:
        raise _no_source(gpu, "ranks on GPUs " + ", ".join(str(rank.gpu) for rank in ranks))
    return own[:1]


def _no_source(gpu: int, found: str) -> BatonError:
    return BatonError(
        "NO_SOURCE",
        f"No rank on GPU {gpu} holds the parameters for the engine's worker there.",
        expected=f"a rank on GPU {gpu}",
        found=found,
        action="Use as many ranks as engines times tensor-parallel workers, or ZeRO-3.",
    )
