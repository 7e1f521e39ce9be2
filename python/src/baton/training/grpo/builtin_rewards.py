"""Reward functions that come with Baton: makers by name, which a recipe's `arguments` are given to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from baton.answers.math_verifier import MathVerifier, require_math_verify

RewardFunction = Callable[..., list[Any]]


def math_verify(timeout_s: float = 5.0) -> RewardFunction:
    """1 where a completion's last mathematical expression equals the column `answer`, else 0.

    Both may end in `#### ` and the answer, as GSM8K's do. A comparison that takes longer than `timeout_s` is not
    equal; an answer that is no mathematics is a failure of its sample.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s {timeout_s} is not above 0")
    require_math_verify()
    verifier = MathVerifier(timeout_s)

    def judge(completions: list[str], answer: list[Any]) -> list[float | Exception | None]:
        pairs = zip(completions, answer, strict=True)
        return [None if each is None else verifier.judge(completion, str(each)) for completion, each in pairs]

    return judge


def format_matches(pattern: str) -> RewardFunction:
    """1 where the regular expression is found in the completion (`.` is any character, a line's end too), else 0."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r}: {error}") from error

    def judge(completions: list[str]) -> list[float]:
        return [1.0 if compiled.search(completion) else 0.0 for completion in completions]

    return judge


def exact_match() -> RewardFunction:
    """1 where the completion is the column `answer`, but for white space around it, else 0."""

    def judge(completions: list[str], answer: list[Any]) -> list[float | None]:
        pairs = zip(completions, answer, strict=True)
        return [
            None if each is None else 1.0 if completion.strip() == str(each).strip() else 0.0
            for completion, each in pairs
        ]

    return judge


BUILTIN: Mapping[str, Callable[..., RewardFunction]] = {
    "math_verify": math_verify,
    "format": format_matches,
    "exact_match": exact_match,
}
