"""Reward functions of one's own, as a recipe names them: `rewards.py:first_number`.

A function gets the completions and, by name, whatever columns of the data its other arguments are called, and gives a
number for each completion: `None` where it has nothing to say, an exception where the sample cannot be judged.
"""

import re


def first_number(completions: list[str], answer: list[str]) -> list[float]:
    """1 where a completion begins with exactly the answer, whatever it goes on with, else 0."""
    found = [re.match(r"\s*(\d+)", completion) for completion in completions]
    return [float(match is not None and match[1] == right) for match, right in zip(found, answer, strict=True)]
