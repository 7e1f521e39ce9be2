"""Integer and float arrays as they travel: little-endian binary, several numbers a field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError

if sys.byteorder != "little":
    raise ImportError("Baton runs on little-endian machines only")


def _read(binary: bytes, dtype: type[np.generic], field: str) -> npt.NDArray[Any]:
    width = np.dtype(dtype).itemsize
    if len(binary) % width:
        raise BatonError(
            "PROTOCOL_ERROR",
            f"field {field} is not an array of {width}-byte numbers",
            expected=f"a multiple of {width} bytes",
            found=f"{len(binary)} bytes",
            action="Use the same version of Baton in every process of the run.",
        )
    return np.frombuffer(binary, dtype=dtype)


def u8s(binary: bytes, field: str) -> npt.NDArray[np.uint8]:
    """A read-only view; `field` names it in the error."""
    return _read(binary, np.uint8, field)


def u32s(binary: bytes, field: str) -> npt.NDArray[np.uint32]:
    """A read-only view. Raises PROTOCOL_ERROR when the length is not a multiple of 4."""
    return _read(binary, np.uint32, field)


def u64s(binary: bytes, field: str) -> npt.NDArray[np.uint64]:
    """A read-only view. Raises PROTOCOL_ERROR when the length is not a multiple of 8."""
    return _read(binary, np.uint64, field)


def f32s(binary: bytes, field: str) -> npt.NDArray[np.float32]:
    """A read-only view. Raises PROTOCOL_ERROR when the length is not a multiple of 4."""
    return _read(binary, np.float32, field)


def binary_u8(values: Sequence[int] | npt.NDArray[Any]) -> bytes:
    """The values as bytes; a value that does not fit raises OverflowError or ValueError."""
    return _write(values, np.uint8)


def binary_u32(values: Sequence[int] | npt.NDArray[Any]) -> bytes:
    """The values as little-endian u32; one that does not fit raises OverflowError or ValueError."""
    return _write(values, np.uint32)


def binary_u64(values: Sequence[int] | npt.NDArray[Any]) -> bytes:
    """The values as little-endian u64; one that does not fit raises OverflowError or ValueError."""
    return _write(values, np.uint64)


def binary_f32(values: Sequence[float] | npt.NDArray[Any]) -> bytes:
    """The values as little-endian float32."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()


def _write(values: Sequence[int] | npt.NDArray[Any], dtype: type[np.unsignedinteger[Any]]) -> bytes:
    if isinstance(values, np.ndarray):
        if values.dtype == dtype:
            return values.tobytes()
        if values.dtype.kind not in "iu" and values.size:
            raise ValueError(f"whole numbers expected, got {values.dtype}")
        info = np.iinfo(dtype)
        if values.size and (int(values.min()) < 0 or int(values.max()) > info.max):
            raise ValueError(f"{values.min()}..{values.max()} does not fit {np.dtype(dtype).name}")
        return values.astype(dtype).tobytes()
    return np.array(values, dtype=dtype).tobytes()
