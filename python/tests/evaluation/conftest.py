"""What the tests of whole evaluations share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baton.evaluation.judging import Judges


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is slower with several."""
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def judges() -> Any:
    with Judges() as made:
        yield made
