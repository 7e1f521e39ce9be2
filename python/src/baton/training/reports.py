"""What a pause and a resume of the training memory tell about themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["optimizer", "all"]


@dataclass(frozen=True)
class Paused:
    """What a pause did, in bytes. `outside_bytes`: training state that is not in the pool."""

    released_bytes: int
    saved_bytes: int
    clean_bytes: int
    dead_bytes: int
    kept_bytes: int
    outside_bytes: int
    seconds: float
    simulated_seconds: float | None


@dataclass(frozen=True)
class Returned:
    """A finished resume: bytes copied back, and how long the training had to wait for it."""

    copied_bytes: int
    waited_seconds: float
    seconds: float
