"""Who needs optimizer state that is still on its way back."""

from __future__ import annotations

import threading

import pytest

from baton.training.gate import Gate


def test_it_is_waited_for_once() -> None:
    gate, waits = Gate(), []
    gate.close(lambda: waits.append(1))
    gate.pass_through()
    gate.pass_through()
    assert waits == [1]


def test_a_wait_that_failed_opens_it_for_nobody() -> None:
    gate, errors = Gate(), [OSError("first"), OSError("second")]

    def wait() -> None:
        if errors:
            raise errors.pop(0)

    gate.close(wait)
    for word in ("first", "second"):
        with pytest.raises(OSError, match=word):
            gate.pass_through()
        assert gate.closed
    gate.pass_through()
    assert not gate.closed


def test_nobody_passes_while_another_waits() -> None:
    gate, may_open, passed = Gate(), threading.Event(), threading.Event()
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        assert may_open.wait(60)

    gate.close(wait)
    first = threading.Thread(target=gate.pass_through)
    second = threading.Thread(target=lambda: (gate.pass_through(), passed.set()))
    first.start()
    assert waiting.wait(60)
    second.start()
    assert not passed.wait(0.1)
    may_open.set()
    first.join()
    second.join()
    assert passed.is_set()
