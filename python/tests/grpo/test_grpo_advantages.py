from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import BatonError
from baton.training.grpo.advantages import EPSILON, advantages, reward_sums, std_of

NAN = math.nan


# Failures anywhere, groups without a single success among them.
REWARDS = (
    st.integers(1, 6)
    .flatmap(
        lambda width: st.lists(
            st.lists(st.just(NAN) | st.floats(-100, 100, width=32), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    )
    .map(lambda rows: torch.tensor(rows, dtype=torch.float64))
)


@given(REWARDS)
def test_against_statistics(rewards: torch.Tensor) -> None:
    everything = [reward for reward in rewards.flatten().tolist() if not math.isnan(reward)]
    of_all = statistics.stdev(everything) if len(everything) > 1 else 0.0
    # A difference of squares up to 1e4, in double precision.
    assert std_of(reward_sums(rewards)) == pytest.approx(of_all, abs=1e-4)
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
            assert row == pytest.approx([0.0 if math.isnan(each) else (each - mean) / by for each in group], abs=1e-9)


@given(REWARDS)
def test_sums_of_ranks_add_up(rewards: torch.Tensor) -> None:
    parts = torch.stack([reward_sums(part) for part in rewards.split(1)])
    assert std_of(parts.sum(dim=0)) == pytest.approx(std_of(reward_sums(rewards)), abs=1e-4)


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
