"""Turns a use of the training state while it is away into an error that says so, instead of a segmentation fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from baton.errors import BatonError


class AwayGuard:
    """Watches the forward passes of modules. (Backward and step need a forward pass first.)"""

    def __init__(self, paused: Callable[[], bool]) -> None:
        self._paused = paused
        self._handles: list[Any] = []

    def watch(self, modules: Iterable[Any], parked: Callable[[], bool] | None = None) -> None:
        """`parked`: whether modules that have a phase of their own are away because it has ended."""

        def check(module: Any, *_: Any) -> None:
            name = type(module).__name__
            if self._paused():
                raise _given_away(name)
            if parked is not None and parked():
                raise _parked(name)

        # First of all hooks: ZeRO-3 gathers parameters in one of its own.
        self._handles += [module.register_forward_pre_hook(check, prepend=True) for module in modules]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _given_away(name: str) -> BatonError:
    return BatonError(
        "STATE_AWAY",
        f"{name} was called while its memory is given to the engines.",
        expected="forward, backward and step outside of `with session.rollout()`",
        found="a forward pass inside of it",
        action="Compute with policy and reference model after the rollout block; keep only data in it.",
    )


def _parked(name: str) -> BatonError:
    return BatonError(
        "STATE_AWAY",
        f"{name} was called after `with session.reference()`, when it is not on the GPU.",
        expected="forward passes of a frozen model inside of that block, or before it",
        found="a forward pass between its end and that of the next rollout",
        action="Compute all that the batch needs of the frozen model inside of `with session.reference()`.",
    )
