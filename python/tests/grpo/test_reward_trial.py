"""What shows of a reward function before any GPU is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from recipes import error_of

from baton.training.grpo.problems import Problem
from baton.training.grpo.reward_trial import try_rewards
from baton.training.grpo.rewards import Rewards


def trial(function: Any, problems: int = 3) -> None:
    given = [Problem(f"p{number}", {"answer": number}, f"data.jsonl:{number + 1}") for number in range(problems)]
    try_rewards(Rewards([lambda completions: [0.0] * len(completions), function], [1.0, 1.0]), given)


def raises(_completions: list[str]) -> list[float]:
    raise KeyError("solution")


@pytest.mark.parametrize(
    ("function", "code", "found"),
    [
        (raises, "REWARD_TRIAL_FAILED", "solution"),
        (lambda completions: [float("nan")] * len(completions), "REWARD_TRIAL_FAILED", "the reward is nan"),
        (lambda completions: ["good"] * len(completions), "REWARD_TRIAL_FAILED", "no number but str"),
        (lambda _: [1.0], "REWARD_LENGTH", "a list of 1"),
        (lambda _: 1.0, "REWARD_LENGTH", "float"),
    ],
)
def test_what_is_wrong_with_every_completion_is_refused(function: Any, code: str, found: str) -> None:
    for problems in (1, 3):
        assert found in error_of(lambda problems=problems: trial(function, problems), code).found


def test_what_may_be_right_for_other_completions_passes() -> None:
    trial(lambda completions: [None] * len(completions))
    trial(lambda _, answer: [float(each) for each in answer])

    def only_answers(completions: list[str]) -> list[float]:
        return [float(json.loads(each.partition("####")[2])) for each in completions]

    trial(only_answers)
