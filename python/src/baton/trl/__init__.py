"""TRL's GRPOTrainer with Baton's generation: `from baton.trl import BatonGRPOTrainer`.

    baton run recipe.yaml -- accelerate launch --config_file zero3.yaml train.py

Same arguments, same logs, same checkpoints; docs/from-trl.md says what does not apply.
"""

from __future__ import annotations

from baton.trl.trainer import BatonGRPOTrainer

__all__ = ["BatonGRPOTrainer"]
