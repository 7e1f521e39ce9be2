"""Keeps the pool open inside the optimizer's own step until every parameter has its optimizer state.

Adam makes its moments in the first step, deep inside whatever wraps it. Only the innermost `step` is run with the
pool open (ZeRO-3 calls it once for each sub-group), so that nothing else of a training step gets in; and once all
state exists the pool is never opened there again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.training.deepspeed_state import innermost_optimizer, masters_of


class FirstStep:
    """Watches the innermost optimizer of `engine`; `enter` and `leave` open and close the pool."""

    def __init__(self, engine: Any, enter: Callable[[], object], leave: Callable[[], object]) -> None:
        self._engine = engine
        self._optimizer = innermost_optimizer(engine)
        self._enter = enter
        self._leave = leave
        self._inside = False
        self._stepped: set[int] = set()
        self._handles: list[Any] = []
        if not self._complete():
            self._handles = [
                self._optimizer.register_step_pre_hook(self._before),
                self._optimizer.register_step_post_hook(self._after),
            ]

    @property
    def watching(self) -> bool:
        """Whether there is still state to come."""
        return bool(self._handles)

    def _before(self, *_: Any) -> None:
        if self._inside:  # the step before this one ended in an exception
            self._leave()
        self._inside = True
        self._enter()

    def _after(self, *_: Any) -> None:
        self._inside = False
        self._leave()
        self._stepped.update(
            id(parameter)
            for group in self._optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        )
        if self._complete():
            self.stop()

    def _complete(self) -> bool:
        """Every parameter has state, or has been stepped on and got none (plain SGD keeps none)."""
        state = self._optimizer.state
        return all(
            bool(state.get(master)) or id(master) in self._stepped or master.numel() == 0
            for master in masters_of(self._engine)
            if master.requires_grad
        )

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
