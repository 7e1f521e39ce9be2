"""Little sums, such as ``37+48=``: the problems that the demo's policy learns to solve.

All problems with two numbers from 0 to 99 exist here: every sum, and every difference that is not negative. Whole
pairs of numbers are held out, so that a model trained on `training_problems()` has seen neither a held-out problem,
nor the swapped sum, nor the difference of the same numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

LARGEST_NUMBER = 99
HELD_OUT_PAIRS = 256
#: Decides which pairs are held out. The shipped model was made with this split, so it must not change.
SPLIT_SEED = 20_011


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is what the model reads, `answer` what it must write before it stops."""

    prompt: str
    answer: str


def problems_of_pair(small: int, large: int) -> list[Problem]:
    """The two sums and the difference of `small <= large` (one sum where both are equal)."""
    sums = {(small, large), (large, small)}
    problems = [Problem(f"{first}+{second}=", str(first + second)) for first, second in sorted(sums)]
    return [*problems, Problem(f"{large}-{small}=", str(large - small))]


@cache
def _split() -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    pairs = list(combinations_with_replacement(range(LARGEST_NUMBER + 1), 2))
    shuffle = random.Random(SPLIT_SEED)
    shuffle.shuffle(pairs)
    training = [problem for pair in pairs[HELD_OUT_PAIRS:] for problem in problems_of_pair(*pair)]
    held_out = [problem for pair in pairs[:HELD_OUT_PAIRS] for problem in problems_of_pair(*pair)]
    shuffle.shuffle(training)
    shuffle.shuffle(held_out)
    return tuple(training), tuple(held_out)


def training_problems() -> tuple[Problem, ...]:
    """Problems to train on, in a fixed, shuffled order."""
    return _split()[0]


def held_out_problems() -> tuple[Problem, ...]:
    """Problems that nothing is ever trained on, in a fixed, shuffled order; any prefix is a fair sample."""
    return _split()[1]


def reward(problem: Problem, completion: str) -> float:
    """1.0 for exactly the answer, 0.0 for anything else: nearly right is wrong."""
    return 1.0 if completion == problem.answer else 0.0
