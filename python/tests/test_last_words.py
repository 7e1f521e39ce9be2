"""Errors that torch can only carry as text."""

import json

from baton.errors import BatonError

OURS = {"code": "OUT_OF_MEMORY", "message": "no room", "expected": "1 byte", "found": "0", "action": "less"}


def test_a_failure_of_our_allocator_comes_out_of_torchs_error_whole() -> None:
    text = f"training memory: {json.dumps(OURS)}\nException raised from allocate at cpu_allocator.cc:57"
    assert BatonError.from_exception(RuntimeError(text), "building").to_wire() == OURS


def test_other_text_is_an_unexpected_error() -> None:
    for text in ("training memory: {", 'training memory: {"code": 1', "training memory: {}", "boom"):
        found = BatonError.from_exception(RuntimeError(text), "building")
        assert found.code == "UNEXPECTED_ERROR"
        assert text in found.message
