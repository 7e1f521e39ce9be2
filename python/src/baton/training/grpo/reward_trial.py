"""Reward functions tried on a few made-up completions, before any GPU is used.

What is wrong with every completion (a list of the wrong length, a text instead of a number, an exception always) shows
here and not after the engines have started. A recipe may leave it out for a function that only takes real completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from baton.errors import BatonError
from baton.training.grpo.problems import Problem, columns_of
from baton.training.grpo.rewards import Rewards, judge_by

#: One that gives an answer, and one that gives none.
COMPLETIONS = ("The answer is \\boxed{42}.\n#### 42", "I do not know.")
_PROBLEMS = 2


def try_rewards(rewards: Rewards, problems: Sequence[Problem]) -> None:
    """Judges made-up completions of the first problems by each function alone.

    Raises BatonError REWARD_LENGTH, or REWARD_TRIAL_FAILED where a function fails with every one of them. That it has
    nothing to say (None) is no failure: it may be for other problems.
    """
    tried = [problem for problem in problems[:_PROBLEMS] for _ in COMPLETIONS]
    samples = {
        **columns_of(tried),
        "prompts": [each.prompt for each in tried],
        "completions": list(COMPLETIONS) * (len(tried) // len(COMPLETIONS)),
    }
    for function in rewards.functions:
        failures = judge_by(function, samples, np.full(len(tried), np.nan))
        if len(failures) < len(tried):
            continue
        raise BatonError(
            "REWARD_TRIAL_FAILED",
            f"The reward function {function.name} fails with every completion that it was tried on.",
            expected=f"a finite number, or None, for completions such as {COMPLETIONS[1]!r}",
            found=failures[0].error,
            action="Correct the function or its arguments. If it is right, and only made-up completions are wrong for "
            "it, set grpo.try_rewards to false.",
        )
