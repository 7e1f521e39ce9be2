from __future__ import annotations

import pickle

import pytest

from baton import faults
from baton.errors import BatonError
from baton.faults import Fault, Faults


def test_an_error_reads_as_what_went_wrong_and_what_to_do():
    error = BatonError("CODE", "It broke.", expected="one", found="two", action="Mend it.")
    assert str(error).splitlines() == [
        "CODE: It broke.",
        "  expected: one",
        "  found:    two",
        "  action:   Mend it.",
    ]


def test_an_error_survives_the_wire_and_a_pickle():
    error = BatonError("CODE", "It broke.", expected="one", found="two", action="Mend it.")
    assert BatonError.from_wire(error.to_wire()).to_wire() == error.to_wire()
    assert pickle.loads(pickle.dumps(error)).to_wire() == error.to_wire()


def test_an_unexpected_exception_keeps_its_text():
    error = BatonError.from_exception(ValueError("no such file"), "loading")
    assert error.code == "UNEXPECTED_ERROR"
    assert "loading failed: ValueError: no such file" in error.message


def test_rules_are_read():
    assert faults.parse("worker.sync.flip-bit@2, rank.prompts.swap ,a.b@1:x:y") == (
        Fault("worker.sync.flip-bit", 2, ""),
        Fault("rank.prompts.swap", None, ""),
        Fault("a.b", 1, "x:y"),
    )


@pytest.mark.parametrize("text", ["@2", "a.b@", "a.b@0", "a.b@x"])
def test_a_rule_that_makes_no_sense_is_an_error(text):
    with pytest.raises(BatonError) as caught:
        faults.parse(text)
    assert caught.value.code == "BAD_FAULT_RULE"


def test_the_nth_pass_is_a_fault():
    rules = Faults(faults.parse("a@2,b"))
    assert [rules.hit("a") is not None for _ in range(4)] == [False, True, False, False]
    assert [rules.hit("b") is not None for _ in range(2)] == [True, True]
    assert rules.hit("c") is None
