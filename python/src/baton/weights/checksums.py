"""What a rank's weights sum up to: as they are, and as an engine has them that rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baton import native
from baton.protocol import arrays
from baton.weights.dtypes import ELEMENT_BYTES


@dataclass(frozen=True)
class Checksums:
    """Layout-invariant checksums, one a tensor (uint64)."""

    plain: native.U64s
    #: Of the bfloat16 that float32 elements become; 0 for other tensors, and empty when none is float32.
    rounded: native.U64s

    @classmethod
    def of(cls, device: int, items: native.Array, dtypes: Sequence[str]) -> Checksums:
        """Of `items` (an array of native.CHECKSUM_ITEM; the group is the tensor), with the dtype of each tensor."""
        plain = native.checksum(device, items, len(dtypes))
        if "float32" not in dtypes:
            return cls(plain, np.zeros(0, dtype=np.uint64))
        exact = items[items["element_bytes"] == ELEMENT_BYTES["float32"]]
        exact["conversion"] = native.ROUNDED
        return cls(plain, native.checksum(device, exact, len(dtypes)))

    def on_the_wire(self) -> dict[str, bytes]:
        """The fields of `exported`."""
        return {
            "checksums": arrays.binary_u64(self.plain),
            "rounded_checksums": arrays.binary_u64(self.rounded),
        }


#: When they were not asked for.
NOT_ASKED = {"checksums": b"", "rounded_checksums": b""}
