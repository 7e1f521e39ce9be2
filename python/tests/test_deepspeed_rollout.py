"""What BatonRollout refuses at once; whole rollouts are in test/integration/rollout-engine.test.ts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.rollout.base import RolloutRequest, SamplingConfig

from baton.deepspeed_rollout import BatonRollout
from baton.errors import BatonError


def rollout() -> BatonRollout:
    nobody: Any = None
    return BatonRollout(nobody, SimpleNamespace(pad_token_id=0, eos_token_id=1))


def test_prompts_that_are_padded_on_the_right_are_refused() -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    with pytest.raises(BatonError, match="padded on the right") as caught:
        rollout().generate(RolloutRequest(ids, (ids != 0).long()), SamplingConfig(max_new_tokens=2))
    assert caught.value.code == "BAD_PROMPT"
    assert caught.value.found.startswith("1 of 2 rows")


def test_a_tokenizer_without_any_padding_is_refused() -> None:
    nobody: Any = None
    with pytest.raises(BatonError) as caught:
        BatonRollout(nobody, SimpleNamespace(pad_token_id=None, eos_token_id=None))
    assert caught.value.code == "NO_PAD_TOKEN"
