"""What one optimizer step of a TRL trainer costs, part by part: seconds, and the most that the GPU holds meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from support import DEVICE, device_bytes_used

#: Between two looks at the GPU's memory.
LOOK_SECONDS = 0.005
#: Methods of TRL's GRPOTrainer. Generation is inside of scoring, and scoring inside of what precedes a step.
PARTS = {"_generate": "generation", "_generate_and_score_completions": "scoring"}
#: Of what TRL generates with: inside of generation. `generate` wakes and sleeps the engine too.
OF_VLLM = {"sync_weights": "sync", "generate": "engine"}
#: Of a rollout of Baton's, the same: `sync` is the whole handoff, and `back` until the parameters are there.
OF_ROLLOUT = {"__enter__": "sync", "generate": "engine", "__exit__": "back"}
#: Parts of generation: the GPU generates all the while.
INSIDE = frozenset({*OF_VLLM.values(), *OF_ROLLOUT.values()})


class Meter:
    """Wraps the trainer's methods. `steps` has for each optimizer step, and `evaluations` for each of those between
    steps: seconds as a whole and of the parts. `peaks`: the most bytes in use on the GPU, while generating and otherwise,
    since the second step. Where there is no GPU, none."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.peaks: dict[str, int] = {}
        self._now: dict[str, float] = {}
        self._began = 0.0
        self._part = ""
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def wrap(self, trainer: Any) -> None:
        self._wrap(trainer, PARTS)
        if hasattr(trainer, "baton_session"):
            from baton.rollout import Rollout

            self._wrap(Rollout, OF_ROLLOUT)
        elif trainer.use_vllm:
            self._wrap(trainer.vllm_generation, OF_VLLM)
        trainer.evaluate = self._evaluating(trainer.evaluate)

    def _wrap(self, whole: Any, parts: dict[str, str]) -> None:
        for method, part in parts.items():
            setattr(whole, method, self._timed(getattr(whole, method), part))

    def begin(self) -> None:
        self._began = time.monotonic()
        if torch.cuda.is_available():
            self._watcher.start()

    def step_ended(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.steps.append({"whole": now - self._began, **self._now})
        self._began, self._now = now, {}

    def end(self) -> None:
        self._ended.set()

    def _timed(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.monotonic()
            before, self._part = self._part, self._part if part in INSIDE else part
            try:
                return method(*arguments, **named)
            finally:
                self._part = before
                self._now[part] = self._now.get(part, 0.0) + time.monotonic() - began

        return timed

    def _evaluating(self, evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def evaluating(*arguments: Any, **named: Any) -> Any:
            began, step, self._now = time.monotonic(), self._now, {}
            try:
                return evaluate(*arguments, **named)
            finally:
                took = time.monotonic() - began
                self.evaluations.append({"whole": took, **self._now})
                self._now = step
                self._began += took  # of no step

        return evaluating

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if len(self.steps) < 2:
                continue
            what = "generating" if self._part == "generation" else "training"
            self.peaks[what] = max(self.peaks.get(what, 0), device_bytes_used(DEVICE))
