"""The training memory of this process: torch has one allocator, so there is one."""

from __future__ import annotations

from baton import joining
from baton.training.deepspeed_support import check_accelerate
from baton.training.memory import TrainingMemory, local_rank

_current: TrainingMemory | None = None


def training_memory(*, segment_bytes: int | None = None) -> TrainingMemory:
    """The training memory of this process, made at the first call, as a context: what torch allocates inside of it
    can be released during generation. `segment_bytes` (first call only): see `TrainingMemory`.

    In a run this is where a rank joins it: the call returns when every engine has started and sleeps, so that
    the two never build their memory on the same GPU at the same time.
    """
    global _current
    if _current is None:
        joining.join_early(local_rank())
        _current = TrainingMemory(segment_bytes=segment_bytes, weight_bytes=joining.weight_bytes())
        _current.take_arena()
    check_accelerate()
    return _current


def current() -> TrainingMemory | None:
    """The training memory of this process, if `training_memory()` was ever called."""
    return _current
