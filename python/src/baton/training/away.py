"""Turns a use of the training state while it is away into an error that says so, instead of a segmentation fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from baton.errors import BatonError


class AwayGuard:
    """Watches the forward passes of modules. (Backward and step need a forward pass first.)"""

    def __init__(self, modules: Iterable[Any], is_away: Callable[[], bool]) -> None:
        self._is_away = is_away
        # First of all hooks: ZeRO-3 gathers parameters in one of its own.
        self._handles = [module.register_forward_pre_hook(self._check, prepend=True) for module in modules]

    def _check(self, module: Any, *_: Any) -> None:
        if self._is_away():
            raise BatonError(
                "STATE_AWAY",
                f"{type(module).__name__} was called while its memory is given to the engines.",
                expected="forward, backward and step outside of `with session.rollout()`",
                found="a forward pass inside of it",
                action="Compute with policy and reference model after the rollout block; keep only data in it.",
            )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
