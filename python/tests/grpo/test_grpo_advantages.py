from __future__ import annotations

import math
import statistics

import pytest
import torch

from baton.errors import BatonError
from baton.training.grpo.advantages import EPSILON, advantages, reward_sums, std_of

NAN = math.nan


def some_rewards(seed: int) -> torch.Tensor:
    """Of any shape, with any share of failures, groups without a single success among them."""
    chance = torch.Generator().manual_seed(seed)
    shape = [int(torch.randint(1, 7, (), generator=chance)) for _ in range(2)]
    rewards = torch.randn(shape, generator=chance, dtype=torch.float64) * 10
    return rewards.masked_fill(torch.rand(shape, generator=chance) < seed % 5 / 4, NAN)


@pytest.mark.parametrize("seed", range(40))
def test_against_statistics(seed: int) -> None:
    rewards = some_rewards(seed)
    everything = [reward for reward in rewards.flatten().tolist() if not math.isnan(reward)]
    of_all = statistics.stdev(everything) if len(everything) > 1 else 0.0
    assert std_of(reward_sums(rewards)) == pytest.approx(of_all, abs=1e-6)
    for scale in ("group", "batch", "none"):
        found = advantages(rewards, scale, of_all)
        assert found.shape == rewards.shape
        for row, group in zip(found.tolist(), rewards.tolist(), strict=True):
            valid = [reward for reward in group if not math.isnan(reward)]
            if len(valid) < 2:
                assert row == [0.0] * len(group)
                continue
            mean = statistics.fmean(valid)
            by = {"group": statistics.stdev(valid) + EPSILON, "batch": of_all + EPSILON, "none": 1.0}[scale]
            assert row == pytest.approx([0.0 if math.isnan(each) else (each - mean) / by for each in group])


@pytest.mark.parametrize("seed", range(10))
def test_sums_of_ranks_add_up(seed: int) -> None:
    rewards = some_rewards(seed)
    parts = torch.stack([reward_sums(part) for part in rewards.split(1)])
    assert std_of(parts.sum(dim=0)) == pytest.approx(std_of(reward_sums(rewards)))


def test_equal_rewards_are_exactly_no_advantage() -> None:
    assert advantages(torch.full((2, 7), 0.1), "group").tolist() == [[0.0] * 7] * 2


@pytest.mark.parametrize("failure", [NAN, math.inf, -math.inf])
def test_a_failed_sample_changes_nothing_for_the_others(failure: float) -> None:
    alone = advantages(torch.tensor([[1.0, 0.0, 0.5]]), "group")
    found = advantages(torch.tensor([[1.0, failure, 0.0, 0.5]]), "group")
    assert found[0, 1] == 0
    assert torch.equal(found[:, [0, 2, 3]], alone)
    assert std_of(reward_sums(torch.tensor([1.0, failure, 0.0]))) == pytest.approx(statistics.stdev([1, 0]))


@pytest.mark.parametrize(("scale", "std"), [("batch", None), ("batch", NAN), ("groups", None)])
def test_scales_that_are_none(scale: str, std: float | None) -> None:
    with pytest.raises(BatonError, match="BAD_ADVANTAGE_SCALE"):
        advantages(torch.zeros(1, 2), scale, std)  # type: ignore[arg-type]
