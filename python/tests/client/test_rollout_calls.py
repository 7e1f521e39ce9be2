"""Calls of generate() that no engine could answer: refused in the rank, before the controller hears of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from baton.completion import Sampling
from baton.errors import BatonError
from baton.protocol.messages import Arrive, Leave, Opened, Prompts, Resume, Resumed
from baton.rollout import Rollout


class Controller:
    """The connection of a rank that has nothing to release; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.welcome = SimpleNamespace(simulated=False, logprob_sequences=0)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def receive(self) -> tuple[Any, list[int]]:
        return Opened(epoch=0), []

    def expect(self, kind: type) -> tuple[Any, list[int]]:
        assert kind is Resume
        return Resume(seq=1), []

    def fail(self, error: BaseException, doing: str, *, away: bool = False) -> None:
        self.sent.append((f"{doing}, state away" if away else doing, error))


def rollout_of(controller: Any) -> Rollout:
    memory: Any = SimpleNamespace(
        prepare=lambda: None, engine=SimpleNamespace(global_steps=0), paused=None, peers=None, stay=lambda: None
    )
    return Rollout(controller, memory, lambda: None)  # type: ignore[arg-type, return-value]


def closed(rollout: Rollout) -> BatonError:
    with pytest.raises(BatonError) as caught:
        rollout.generate([[1]], Sampling(max_tokens=1))
    assert caught.value.code == "ROLLOUT_CLOSED"
    return caught.value


def test_generate_after_the_block() -> None:
    controller = Controller()
    rollout = rollout_of(controller)
    with rollout:
        pass
    assert closed(rollout).found == "a call after the block"
    assert [type(message) for message in controller.sent] == [Arrive, Leave, Resumed]


def test_generate_before_the_block() -> None:
    controller = Controller()
    assert closed(rollout_of(controller)).found == "a call before the block"
    assert not any(isinstance(message, Prompts) for message in controller.sent)


def test_generate_after_a_block_that_failed() -> None:
    rollout = rollout_of(Controller())
    with pytest.raises(ZeroDivisionError), rollout:
        raise ZeroDivisionError
    assert not rollout.open
    closed(rollout)
