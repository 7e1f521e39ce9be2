"""What is found of an optimizer wrapper that keeps tensors under names that nobody told Baton."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baton.training.deepspeed_state import training_tensors
from baton.training.holdings import Holdings, Role


class Views(list[torch.Tensor]):
    """As DeepSpeed's: a list of views that keeps the buffer behind them."""

    flat_partition: torch.Tensor


@dataclass
class Slice:
    offset: int
    fragment: torch.Tensor


class Wrapper:
    """Around a torch optimizer, with tensors in nested containers and much that holds none."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        self.listed = [parameters, tuple(parameters)]
        self.direct = torch.ones(3)
        self.nested = [[0, None, {"a": torch.ones(4), "b": "text", 3: torch.ones(5)}]]
        self.slices = {"first": Slice(7, torch.ones(6))}
        self.views = Views([torch.ones(7)])
        self.views.flat_partition = torch.ones(8)
        self.offsets = {0: 1, 1: 2}
        self.kind = Slice
        self.deeper = [[[[[torch.ones(9)]]]]]


@pytest.fixture
def engine() -> Any:
    module = torch.nn.Linear(2, 3)
    return SimpleNamespace(module=module, optimizer=Wrapper(list(module.parameters())))


def test_every_tensor_is_found_where_it_lies(engine):
    found = {label.name: label.role for label in training_tensors(engine)}
    assert found["weight"] is found["bias"] is Role.PARAMETER
    others = {name: role for name, role in found.items() if name.startswith("Wrapper.")}
    assert others == dict.fromkeys(
        (
            "Wrapper.direct",
            "Wrapper.nested[0][2]['a']",
            "Wrapper.nested[0][2][3]",
            "Wrapper.slices['first'].fragment",
            "Wrapper.views[0]",
            "Wrapper.views.flat_partition",
        ),
        Role.OTHER,
    )


def test_a_storage_keeps_the_role_that_counts_most(engine):
    engine.optimizer.view = engine.module.weight.data.view(-1)
    (weight,) = [held for held in Holdings(training_tensors(engine)) if "weight" in held.names]
    assert weight.role is Role.PARAMETER
    assert "Wrapper.view" in weight.names
