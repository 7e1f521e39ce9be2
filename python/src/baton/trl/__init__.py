"""TRL's GRPOTrainer with Baton's generation: `from baton.trl import BatonGRPOTrainer`.

    baton run recipe.yaml -- accelerate launch --config_file zero3.yaml train.py

Same arguments, same logs, same checkpoints; docs/from-trl.md says what does not apply. Importing it raises BatonError
PYTHON_PACKAGE_MISSING or UNSUPPORTED_TRL where the TRL that it extends is not there.
"""

from __future__ import annotations

from baton.trl import version

version.require()

from baton.trl.trainer import BatonGRPOTrainer  # noqa: E402 - with another TRL it fails in places that say nothing

__all__ = ["BatonGRPOTrainer"]
