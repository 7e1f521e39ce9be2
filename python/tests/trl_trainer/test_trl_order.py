"""What can be asked of the trainer before there is a training engine."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("trl")
from baton.errors import BatonError
from baton.trl import BatonGRPOTrainer


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_nothing_is_evaluated_before_the_training(method: str) -> None:
    trainer: Any = BatonGRPOTrainer.__new__(BatonGRPOTrainer)
    trainer._session = None
    with pytest.raises(BatonError) as caught:
        getattr(trainer, method)([])
    assert caught.value.code == "NOT_TRAINING"
