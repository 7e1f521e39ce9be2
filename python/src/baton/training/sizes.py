"""Sizes that the training memory chooses."""

from __future__ import annotations

_MIB = 1 << 20
#: A segment is this part of the device, within bounds: few segments map and are imported fast (each costs the same,
#: whatever its size), small ones release exactly.
_SEGMENTS_PER_DEVICE = 320
_LARGEST_SEGMENT_BYTES = 256 * _MIB
#: The weights of a large model lie in about so many, since every sync exports, imports, maps and unmaps them all.
_SEGMENTS_OF_WEIGHTS = 16
_LARGEST_SEGMENT_OF_WEIGHTS_BYTES = 1024 * _MIB


def segment_bytes(device_bytes: int, weight_bytes: int | None = None) -> int:
    """The granularity of release on a device of this size, in bytes. `weight_bytes`: of the policy's weights as the
    engines hold them, None where that is not known."""
    wanted = device_bytes // _SEGMENTS_PER_DEVICE
    small = min(_LARGEST_SEGMENT_BYTES, max(2 * _MIB, wanted // (2 * _MIB) * 2 * _MIB))
    if not weight_bytes:
        return small
    large = 1 << (weight_bytes // _SEGMENTS_OF_WEIGHTS).bit_length()
    return max(small, min(large, _LARGEST_SEGMENT_OF_WEIGHTS_BYTES))


def arena_bytes(saved_bytes: int) -> int:
    """Room for `saved_bytes`: blocks are aligned, and a little more spares a second arena when gradients are live."""
    return _round_up(saved_bytes + saved_bytes // 16 + 8 * _MIB, 2 * _MIB)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
