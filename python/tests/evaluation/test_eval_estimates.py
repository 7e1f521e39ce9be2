"""pass@k is the share of k samples with a right one, and its interval holds what it promises."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.evaluation.estimates import estimate, pass_at_k, wilson


@given(st.integers(1, 8), st.data())
@settings(max_examples=200, deadline=None)
def test_pass_at_k_is_the_mean_over_all_choices_of_k(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    choices = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(fmean(any(choice) for choice in choices), abs=1e-12)


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_its_digits() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-9)
    assert pass_at_k(10_000, 9_990, 100) == 1.0
    for samples, correct, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
        with pytest.raises(ValueError, match=f"pass@{k}"):
            pass_at_k(samples, correct, k)


def test_wilson_as_it_stands_in_tables() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, of, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                 (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(right / of, of) == pytest.approx((low, high), abs=5e-5)
    wide, narrow = wilson(0.5, 100, 0.99), wilson(0.5, 100, 0.8)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


def test_one_sample_a_problem_is_wilsons_interval() -> None:
    found = estimate([(1, 1)] * 30 + [(1, 0)] * 70, 1)
    assert (found.value, found.problems) == (0.3, 100)
    assert (found.low, found.high) == pytest.approx(wilson(0.3, 100))


def test_samples_of_a_problem_that_are_alike_add_nothing() -> None:
    once, often = estimate([(1, 1)] * 30 + [(1, 0)] * 70, 1), estimate([(8, 8)] * 30 + [(8, 0)] * 70, 1)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    spread = estimate([(8, 4)] * 50 + [(8, 3)] * 50, 1)
    assert spread.low is not None
    assert spread.high is not None
    assert (spread.low, spread.high) == pytest.approx(wilson(7 / 16, 800))  # no more than the samples that there are


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4), st.sampled_from([0.5, 0.95, 0.999]))
@settings(max_examples=300, deadline=None)
def test_an_interval_is_around_its_value_and_has_a_width(right: list[int], k: int, confidence: float) -> None:
    found = estimate([(4, c) for c in right], k, confidence)
    assert found.problems == len(right)
    if not right:
        assert (found.value, found.low, found.high) == (None, None, None)
        return
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_problems_with_too_few_samples_are_left_out() -> None:
    found = estimate([(4, 4), (1, 0), (0, 0)], 2)
    assert (found.problems, found.value) == (1, 1.0)


@pytest.mark.parametrize(
    ("problems", "samples", "k", "easy"), [(50, 1, 1, 0.3), (60, 8, 1, 0.3), (60, 8, 4, 0.1), (200, 4, 2, 0.02)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(problems: int, samples: int, k: int, easy: float) -> None:
    """Problems drawn from a population in which chances differ (a beta distribution with mean `easy`)."""
    chance = np.random.default_rng(7)
    a, b = easy * 2, (1 - easy) * 2
    population = chance.beta(a, b, 200_000)
    truth = float(np.mean(1 - (1 - population) ** k))
    held = 0
    rounds = 600
    for _ in range(rounds):
        right = chance.binomial(samples, chance.beta(a, b, problems))
        found = estimate([(samples, int(c)) for c in right], k)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.92 <= held / rounds <= 0.995
