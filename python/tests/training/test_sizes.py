"""Sizes of segments."""

from __future__ import annotations

import pytest

from baton.training.sizes import segment_bytes

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("device_bytes", "weight_bytes", "wanted"),
    [
        (80 * GIB, None, 256 * MIB),
        (8 * GIB, None, 24 * MIB),
        (256 * MIB, None, 2 * MIB),
        (80 * GIB, 270 * 10**6, 256 * MIB),  # a small model: no larger than by the device
        (80 * GIB, 3_100 * 10**6, 256 * MIB),
        (80 * GIB, 6_200 * 10**6, 512 * MIB),
        (80 * GIB, 15_200 * 10**6, GIB),
        (140 * GIB, 140 * 10**9, GIB),
        (256 * MIB, 100 * MIB, 8 * MIB),
    ],
)
def test_weights_lie_in_few_segments_and_small_ones_in_small(device_bytes, weight_bytes, wanted):
    assert segment_bytes(device_bytes, weight_bytes) == wanted
