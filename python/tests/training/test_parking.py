"""Which segments a parked range may leave: those in which nothing else is live."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from baton import native
from baton.training.parking import others

BASE, UNIT, SEGMENTS = 1 << 30, 16, 40


def layout(chance: np.random.Generator) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Blocks one after another, with gaps here and there; some of them are parked, a few together as one range."""
    blocks: list[tuple[int, int]] = []
    parked: list[tuple[int, int]] = []
    address = BASE + int(chance.integers(0, 20))
    while address < BASE + (SEGMENTS - 8) * UNIT:
        size = int(chance.choice([0, 1, 5, 16, 33, 100]))
        blocks.append((address, size))
        if chance.random() < 0.5:
            parked.append((address, size))
        elif chance.random() < 0.3:
            parked.append((address, size + 3))
            blocks.append((address + size, 3))
            size += 3
        address += size + int(chance.choice([0, 0, 1, 30]))
    return parked, blocks


def away_byte_by_byte(parked: list[tuple[int, int]], blocks: list[tuple[int, int]]) -> list[bool]:
    """Of each segment, whether it has a byte of a parked range and none of another live block."""

    def inside(address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + length for start, length in parked)

    mine = {byte for start, length in parked for byte in range(start, start + length)}
    taken = {byte for address, size in blocks if not inside(address, size) for byte in range(address, address + size)}
    segments = [range(BASE + index * UNIT, BASE + (index + 1) * UNIT) for index in range(SEGMENTS)]
    return [not mine.isdisjoint(segment) and taken.isdisjoint(segment) for segment in segments]


@pytest.mark.parametrize("seed", range(30))
def test_the_same_as_byte_by_byte(seed: int) -> None:
    chance = np.random.default_rng(seed)
    parked, blocks = layout(chance)
    chance.shuffle(parked)
    expected = away_byte_by_byte(parked, blocks)
    assert any(expected)
    assert not all(expected)
    kept = others(parked, native.ranges(blocks), BASE, UNIT)
    found = [
        not any(start < BASE + (index + 1) * UNIT and start + length > BASE + index * UNIT for start, length in kept)
        for index in range(SEGMENTS)
    ]
    assert found == expected
    assert kept[-1][0] + kept[-1][1] == BASE + (1 << 46)
    assert all(left + length < right for (left, length), (right, _) in pairwise(kept))


def test_nothing_parked_and_nothing_live() -> None:
    assert others([], native.ranges([]), BASE, UNIT) == [(BASE, 1 << 46)]
    assert others([(BASE + 16, 16)], native.ranges([]), BASE, UNIT) == [(BASE, 16), (BASE + 32, (1 << 46) - 32)]
