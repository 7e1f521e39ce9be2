"""Reward functions: how they are called, and that what goes wrong with a sample stays with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import error_of

from baton.errors import BatonError
from baton.training.grpo.rewards import Judged, Rewards, check_some_judged

COMPLETIONS = ["a", "bb", "ccc"]


def judge(*functions: Any, weights: Any = None, completions: list[str] = COMPLETIONS, **columns: list[Any]) -> Judged:
    rewards = Rewards(functions, weights or [1.0] * len(functions))
    return rewards.judge([f"p{each}" for each in completions], completions, columns)


def length(completions: list[str]) -> list[float]:
    return [float(len(each)) for each in completions]


def test_a_weighted_sum() -> None:
    judged = judge(length, lambda _: [1, 0, True], weights=[0.5, -2.0])
    np.testing.assert_array_equal(judged.values, [[1, 2, 3], [1, 0, 1]])
    assert judged.values.dtype == judged.total.dtype == np.float64
    np.testing.assert_array_equal(judged.total, [-1.5, 1.0, -0.5])
    assert judged.failures == []


def test_functions_get_the_arguments_that_they_name() -> None:
    seen: dict[str, Any] = {}

    def all_of_it(completions: list[str], prompts: list[str], **columns: list[Any]) -> list[float]:
        seen["all"] = (completions, prompts, columns)
        return [0.0] * len(completions)

    def some(texts: list[str], answer: list[int], *, level: list[int] | None = None) -> list[float]:
        seen["some"] = (texts, answer, level)
        return [0.0] * len(texts)

    def by_name(prompts: list[str], completions: list[str]) -> list[float]:
        seen["names"] = (prompts, completions)
        return [0.0] * len(prompts)

    def only_names(**everything: list[Any]) -> list[float]:
        seen["only"] = sorted(everything)
        return [0.0] * 3

    def named_otherwise(texts: list[str], **columns: list[Any]) -> list[float]:
        seen["otherwise"] = (texts, sorted(columns))
        return [0.0] * len(texts)

    def first_only(completions: list[str], /) -> list[float]:
        return length(completions)

    judge(all_of_it, some, by_name, only_names, named_otherwise, first_only, answer=[1, 2, 3], texts=["hidden"] * 3)
    prompts = ["pa", "pbb", "pccc"]
    assert seen["all"] == (COMPLETIONS, prompts, {"answer": [1, 2, 3], "texts": ["hidden"] * 3})
    assert seen["some"] == (COMPLETIONS, [1, 2, 3], None)
    assert seen["names"] == (prompts, COMPLETIONS)
    assert seen["otherwise"] == (COMPLETIONS, ["answer", "prompts"])
    assert seen["only"] == ["answer", "completions", "prompts", "texts"]


def test_a_function_cannot_change_what_the_next_one_reads() -> None:
    def spoils(completions: list[str], answer: list[int]) -> list[float]:
        completions.clear()
        answer.clear()
        return [0.0] * 3

    np.testing.assert_array_equal(judge(spoils, length, answer=[1, 2, 3]).total, [1, 2, 3])


def test_columns_that_are_missing_are_found_before_the_run() -> None:
    def needs(completions: list[str], answer: list[str], level: int = 0) -> list[float]:  # noqa: ARG001
        return length(completions)

    Rewards([needs, length], [1, 1]).check(["answer", "question"])
    error = error_of(lambda: Rewards([length, needs], [1, 1]).check(["answers", "question"]), "REWARD_COLUMN_MISSING")
    assert "needs" in error.message
    assert "answers" in error.expected
    with pytest.raises(ValueError, match="2 values of answer"):
        judge(needs, answer=["1", "2"])


def test_what_raises_fails_its_own_sample_only() -> None:
    calls: list[int] = []

    def raises(completions: list[str], answer: list[int]) -> list[float]:
        calls.append(len(completions))
        return [1 / each for each in answer]

    judged = judge(raises, length, answer=[1, 0, 2])
    assert calls == [3, 1, 1, 1]
    np.testing.assert_array_equal(judged.values, [[1, math.nan, 0.5], [1, 2, 3]])
    np.testing.assert_array_equal(judged.total, [2, math.nan, 3.5])
    [failure] = judged.failures
    assert (failure.function, failure.sample) == ("raises", 1)
    assert "return [1 / each for each in answer]" in failure.error
    assert failure.error.endswith("ZeroDivisionError: division by zero")


def test_only_the_first_traceback_is_kept() -> None:
    first, second = judge(lambda _: ["no", 1, "no"]).failures
    assert first.error.startswith("Traceback")
    assert second.error == "TypeError: the reward is no number but str: 'no'"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1", 1j, [1.0], 10**400, RuntimeError("mine"), np.nan,
                                 torch.tensor(math.nan), torch.tensor([1.0, 2.0])])  # fmt: skip
def test_what_is_no_finite_number_fails_its_sample(bad: Any) -> None:
    judged = judge(lambda _: [bad, 2.0, None], length)
    np.testing.assert_array_equal(judged.values, [[math.nan, 2, math.nan], [1, 2, 3]])
    np.testing.assert_array_equal(judged.total, [math.nan, 4, 3])
    assert [failure.sample for failure in judged.failures] == [0]


@pytest.mark.parametrize("good", [[1, 0, 1], (1.0, 0.0, 1.0), np.array([1, 0, 1], dtype=np.float32),
                                  torch.tensor([1.0, 0, 1]),
                                  [np.float32(1), np.bool_(False), torch.tensor(1)]])  # fmt: skip
def test_numbers_of_any_kind(good: Any) -> None:
    np.testing.assert_array_equal(judge(lambda _: good).total, [1, 0, 1])


def test_none_does_not_apply() -> None:
    judged = judge(lambda _: [None, 1, None], lambda _: [5, None, None], weights=[1, 10])
    np.testing.assert_array_equal(judged.total, [50, 1, math.nan])
    [failure] = judged.failures
    assert (failure.sample, failure.error) == (2, "no reward function applies")


@pytest.mark.parametrize("result", [[], [1, 2], [1, 2, 3, 4], 1.0, None, "abc", {0: 1, 1: 1, 2: 1}, np.float64(1)])
def test_one_reward_for_each_completion(result: Any) -> None:
    error_of(lambda: judge(lambda _: result), "REWARD_LENGTH")


def test_a_length_that_is_wrong_for_the_batch_only() -> None:
    error_of(lambda: judge(lambda _: [1.0]), "REWARD_LENGTH")


def test_the_length_is_checked_sample_by_sample_too() -> None:
    def wrong(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise ValueError
        return []

    error_of(lambda: judge(wrong), "REWARD_LENGTH")


def test_a_batch_without_any_reward_ends_the_run() -> None:
    def raises(_: list[str]) -> list[float]:
        raise KeyError("who")

    failures = judge(length, raises).failures
    error = error_of(lambda: check_some_judged(0, 3, failures), "REWARDS_FAILED")
    assert error.found.startswith("raises: Traceback")
    assert "KeyError: 'who'" in error.found
    error_of(lambda: check_some_judged(0, 3, []), "REWARDS_FAILED")
    check_some_judged(1, 3, failures)
    check_some_judged(0, 0, [])
    assert judge(raises, completions=[]).total.shape == (0,)


def test_what_is_no_failure_of_a_sample_goes_through() -> None:
    def stops(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise KeyboardInterrupt
        return [1.0]

    def ours(_: list[str]) -> list[float]:
        raise BatonError("REWARD_PROCESS", "m", "e", "f", "a")

    with pytest.raises(KeyboardInterrupt):
        judge(stops)
    error_of(lambda: judge(ours), "REWARD_PROCESS")


values = st.one_of(st.none(), st.just("x"), st.just(math.nan), st.integers(-5, 5))


@given(st.lists(st.tuples(values, values, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_every_sample_is_judged_as_if_alone(samples: list[tuple[Any, Any, bool]]) -> None:
    def first(_: list[str], a: list[Any], fails: list[bool]) -> list[Any]:
        if any(fails):
            raise RuntimeError("fails")
        return a

    def second(_: list[str], b: list[Any]) -> list[Any]:
        return b

    def total(a: Any, b: Any, fails: bool) -> float:
        if fails or isinstance(a, str) or isinstance(b, str) or a is b is None or a != a or b != b:
            return math.nan
        return 2 * (a or 0) - (b or 0)

    wanted = [total(*each) for each in samples]
    a, b, fails = (list(column) for column in zip(*samples, strict=True))

    def run() -> Judged:
        return Rewards([first, second], [2, -1]).judge(["p"] * len(a), ["c"] * len(a), {"a": a, "b": b, "fails": fails})

    judged = run()
    np.testing.assert_array_equal(judged.total, wanted)
    assert {failure.sample for failure in judged.failures} == {i for i, each in enumerate(wanted) if math.isnan(each)}


def test_a_function_that_exits_fails_its_sample_and_not_the_training() -> None:
    def leaves(completions: list[str]) -> list[float]:
        if "bb" in completions:
            raise SystemExit("no more")
        return [1.0] * len(completions)

    judged = judge(leaves)
    np.testing.assert_array_equal(judged.total, [1.0, math.nan, 1.0])
    assert "SystemExit: no more" in judged.failures[0].error
