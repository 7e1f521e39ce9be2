"""A process group that nobody has used stays unused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from baton.training.process_group import let_go_of_barrier


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def barriers(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    made: list[None] = []
    barrier = dist.barrier
    monkeypatch.setattr(dist, "barrier", lambda: (made.append(None), barrier()))
    return made


@pytest.mark.usefixtures("alone")
def test_one_that_was_not_used_makes_no_communicator(barriers: list[None]) -> None:
    let_go_of_barrier()
    # A group of its own, as DeepSpeed has, is another.
    dist.all_reduce(torch.ones(1), group=dist.new_group([0]))
    let_go_of_barrier()
    assert not barriers


@pytest.mark.usefixtures("alone")
def test_one_that_was_used_may_keep_a_barrier(barriers: list[None]) -> None:
    dist.all_reduce(torch.ones(1))
    let_go_of_barrier()
    assert len(barriers) == 1


def test_without_any(barriers: list[None]) -> None:
    let_go_of_barrier()
    assert not barriers
