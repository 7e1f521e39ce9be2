"""Arrays as they travel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import BatonError
from baton.protocol import arrays


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_u64(values: list[int]) -> None:
    assert arrays.u64s(arrays.binary_u64(values), "a").tolist() == values


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_u32(values: list[int]) -> None:
    assert arrays.u32s(arrays.binary_u32(values), "a").tolist() == values
    assert arrays.binary_u32(np.array(values, dtype=np.int64)) == arrays.binary_u32(values)


def test_little_endian() -> None:
    assert arrays.binary_u32([1]) == b"\x01\x00\x00\x00"
    assert arrays.binary_f32([1.0]) == b"\x00\x00\x80\x3f"
    assert arrays.f32s(b"\x00\x00\x80\x3f", "a").tolist() == [1.0]


@pytest.mark.parametrize(
    "values", [[-1], [2**32], np.array([-1]), np.array([2**32]), np.array([1.5]), np.array([[2**40, 1]])]
)
def test_what_does_not_fit_is_an_error(values: Any) -> None:
    with pytest.raises((OverflowError, ValueError)):
        arrays.binary_u32(values)


def test_a_broken_length_names_the_field() -> None:
    with pytest.raises(BatonError, match="checksums"):
        arrays.u64s(b"123", "checksums")
