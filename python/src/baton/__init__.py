"""Baton hands the GPUs of a node back and forth between training and generation.

Importing this package is light: torch, deepspeed and transformers are imported by the parts that need them, when
they are used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from baton.errors import BatonError

if TYPE_CHECKING:
    from baton.completion import Completion, Sampling
    from baton.rollout import Rollout
    from baton.session import Session, attach
    from baton.training.current import training_memory
    from baton.training.memory import TrainingMemory

__version__ = "0.1.0"

_HOMES = {
    "Completion": "baton.completion",
    "Rollout": "baton.rollout",
    "Sampling": "baton.completion",
    "Session": "baton.session",
    "attach": "baton.session",
    "TrainingMemory": "baton.training.memory",
    "training_memory": "baton.training.current",
}

__all__ = [
    "BatonError",
    "Completion",
    "Rollout",
    "Sampling",
    "Session",
    "TrainingMemory",
    "__version__",
    "attach",
    "training_memory",
]


if "BATON_SOCKET" in os.environ and "RANK" in os.environ:
    # A rank of a run. Here, because scripts set up torch.distributed right after their imports.
    from baton.extensions import use_own_folder

    use_own_folder()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
