"""Holds back whoever needs optimizer state that is still streaming in after a resume.

Parameters are back when training goes on; masters and moments follow in the background. Everything of DeepSpeed that
reads or writes them passes the gate first. (A reader that does not would fault: memory is mapped when its bytes are
there, so it can never see anything else.)
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from baton.training.deepspeed_state import innermost_optimizer

#: Methods of the engine, and of its optimizer wrapper, that touch masters or moments.
_ENGINE_METHODS = (
    "save_checkpoint",
    "load_checkpoint",
    "save_16bit_model",
    "offload_states",
    "reload_states",
    "destroy",
)
_OPTIMIZER_METHODS = (
    "step",
    "state_dict",
    "load_state_dict",
    "refresh_fp32_params",
    "update_lp_params",
    "get_full_hp_param",
    "set_full_hp_param",
    "get_local_fp32_param",
    "set_local_hp_param",
    "offload_states",
    "reload_states",
    "destroy",
)
#: Bound to each parameter by ZeRO-1 and ZeRO-2, for safe_get_full_fp32_param and its like.
_PARAMETER_METHODS = ("get_full_hp_param", "set_full_hp_param")


class Gate:
    """Open, or closed with a function that waits until it may open."""

    def __init__(self) -> None:
        self._wait: Callable[[], None] | None = None
        self._waiting = threading.RLock()

    @property
    def closed(self) -> bool:
        return self._wait is not None

    def close(self, wait: Callable[[], None]) -> None:
        """The next to pass calls `wait` and opens the gate."""
        self._wait = wait

    def pass_through(self) -> None:
        """Returns at once when open."""
        if self._wait is None:
            return
        # Whoever comes meanwhile waits too, and whoever comes after a wait that failed is told as well.
        with self._waiting:
            wait = self._wait
            if wait is not None:
                wait()
                self._wait = None

    def guard(self, engine: Any) -> None:
        """Puts the gate in front of everything of `engine` that touches optimizer state. May be called again."""
        inner = innermost_optimizer(engine)
        for name in _ENGINE_METHODS:
            self._guard(engine, name)
        self._relink(engine)
        if engine.optimizer is not inner:
            for name in _OPTIMIZER_METHODS:
                self._guard(engine.optimizer, name)
        # The innermost optimizer is hooked, not wrapped: learning rate schedulers wrap its step themselves.
        if not getattr(inner, "_baton_gate", False):
            inner._baton_gate = True
            inner.register_step_pre_hook(lambda *_: self.pass_through())
            inner.register_state_dict_pre_hook(lambda *_: self.pass_through())
            inner.register_load_state_dict_pre_hook(lambda *_: self.pass_through())
        self._guard_parameters(engine)

    def _guard_parameters(self, engine: Any) -> None:
        for parameter in engine.module.parameters():
            for name in _PARAMETER_METHODS:
                if name in vars(parameter):
                    self._guard(parameter, name)

    def _relink(self, engine: Any) -> None:
        """Loading a checkpoint binds new methods to the parameters."""
        original = engine.load_checkpoint
        if getattr(original, "_baton_relinks", False):
            return

        @functools.wraps(original)
        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._guard_parameters(engine)
            return result

        vars(load_checkpoint)["_baton_relinks"] = True
        engine.load_checkpoint = load_checkpoint

    def _guard(self, owner: Any, name: str) -> None:
        original = getattr(owner, name, None)
        if original is None or getattr(original, "_baton_gate", None) is self:
            return

        @functools.wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.pass_through()
            return original(*args, **kwargs)

        vars(guarded)["_baton_gate"] = self
        setattr(owner, name, guarded)
