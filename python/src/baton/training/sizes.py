"""Sizes that the training memory chooses."""

from __future__ import annotations

_MIB = 1 << 20
#: A segment is this part of the device, within bounds: few segments map and are imported fast (each costs the same,
#: whatever its size), small ones release exactly.
_SEGMENTS_PER_DEVICE = 320
_LARGEST_SEGMENT_BYTES = 256 * _MIB


def segment_bytes(device_bytes: int) -> int:
    """The granularity of release on a device of this size, in bytes."""
    wanted = device_bytes // _SEGMENTS_PER_DEVICE
    return min(_LARGEST_SEGMENT_BYTES, max(2 * _MIB, wanted // (2 * _MIB) * 2 * _MIB))


def arena_bytes(saved_bytes: int) -> int:
    """Room for `saved_bytes`: blocks are aligned, and a little more spares a second arena when gradients are live."""
    return _round_up(saved_bytes + saved_bytes // 16 + 8 * _MIB, 2 * _MIB)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
